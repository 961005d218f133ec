"""A double of an engine, as a program: serves OpenAI's chat completions as an SSE stream, at a speed that its options decide.

`python engine_program.py --port N [--context N] [--sequences N] [--tensor-parallel N] [--children FILE]`. The more sequences, the more tokens a second and the later
the first one. It refuses to start with a context above 10,000, and ends at the first question with one of 9,999. With `--children` it starts a process that
ignores SIGTERM, whose id it writes there.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

FIRST = 0.02
TOKEN = 0.002


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, options: argparse.Namespace) -> None:
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            method, path, _ = head.split(" ", 2)
            length = next(
                (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else {}
            if (method, path) == ("GET", "/v1/models"):
                reply(writer, 200, {"data": [{"id": "double"}]})
            elif (method, path) == ("POST", "/v1/chat/completions"):
                if options.context == 9_999:
                    print("RuntimeError: the double fails at its first question", flush=True)
                    os._exit(3)
                await stream(writer, body, options)
            else:
                reply(writer, 404, {"error": {"message": "not here"}})
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def reply(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    content = json.dumps(body).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        + content
    )


async def stream(writer: asyncio.StreamWriter, body: dict[str, object], options: argparse.Namespace) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    def event(data: str) -> None:
        content = f"data: {data}\n\n".encode()
        writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    count = int(str(body["max_tokens"]))
    await asyncio.sleep(FIRST * options.sequences)
    for place in range(count):
        await asyncio.sleep(TOKEN / options.sequences)
        reason = "length" if place == count - 1 else None
        event(json.dumps({"choices": [{"index": 0, "delta": {"content": f"{place} "}, "finish_reason": reason}]}))
        await writer.drain()
    event(json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}}))
    event("[DONE]")
    writer.write(b"0\r\n\r\n")


async def serve(options: argparse.Namespace) -> None:
    server = await asyncio.start_server(lambda *ends: answer(*ends, options), "127.0.0.1", options.port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--port", "--context", "--sequences", "--tensor-parallel"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--children", type=Path)
    options = parser.parse_args()
    if options.context > 10_000:
        print(
            f"loading\nValueError: not enough memory for a context of {options.context} tokens\nSee https://errors.example/v",
            flush=True,
        )
        sys.exit(1)
    if options.children is not None:
        program = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        options.children.write_text(str(child.pid))
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
