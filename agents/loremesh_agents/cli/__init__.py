"""The `loremesh` command. It talks to agents over gRPC only, like every other client."""
