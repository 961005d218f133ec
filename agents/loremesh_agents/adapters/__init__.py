"""One module per technology behind the ports. Each translates its driver's errors in one place."""
