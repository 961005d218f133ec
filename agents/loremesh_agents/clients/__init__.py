"""The other agents over gRPC, behind the ports of `ports.peers`."""
