"""A knowledge agent in a process of its own: `python knowledge_process.py FOLDER`. Prints its address."""

# The process that analyses documents imports this file, and needs nothing of it.
if __name__ == "__main__":
    import asyncio
    import sys
    from pathlib import Path

    from loremesh_agents.bootstrap.serve import build, serve
    from loremesh_agents.bootstrap.settings import Settings, StoreSettings

    async def main() -> None:
        settings = Settings(stores=StoreSettings(data=Path(sys.argv[1]), embedder="none"))
        mesh = await build(["knowledge"], settings, free_ports=True)
        print(mesh.servers[0].target, flush=True)
        await serve(mesh, settings)

    asyncio.run(main())
