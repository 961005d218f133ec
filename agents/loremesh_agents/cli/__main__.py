"""`python -m loremesh_agents.cli`."""

from loremesh_agents.cli.main import main

main()
