"""The runtime kit: servers, interceptors, channels, drain, health, telemetry. It knows gRPC and knows no agent."""
