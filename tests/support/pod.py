"""`python -m tests.support.pod NAME PORT[/proxy] …`: an app as the e2e tests need it, one TCP server on several ports.

It speaks first, as SMTP does: "NAME PORT CLIENT-IP CLIENT-PORT\\n", then echoes. On a `/proxy` port a PROXY v1 header must
come first and is where the client's address is read from; what does not begin with one gets "no PROXY header" and the end.
"""

import asyncio
import re
import signal
import sys

_V1 = re.compile(rb"PROXY TCP[46] (\S+) \S+ (\d+) \d+\r\n")


async def serve(name: str, port: int, *, proxy: bool) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            client = await _client(reader, writer, proxy=proxy)
            if client:
                writer.write(f"{name} {port} {client}\n".encode())
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            else:
                writer.write(b"no PROXY header\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # probes connect and leave
        finally:
            writer.close()

    return await asyncio.start_server(answer, "0.0.0.0", port, backlog=1024)


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, proxy: bool) -> str:
    """ "IP PORT", empty when a PROXY header should be there and is not."""
    if not proxy:
        ip, port = writer.get_extra_info("peername")[:2]
        return f"{ip} {port}"
    header = _V1.fullmatch(await reader.readuntil(b"\n"))
    return f"{header[1].decode()} {header[2].decode()}" if header else ""


async def main(name: str, ports: list[str]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servers = [await serve(name, int(port.removesuffix("/proxy")), proxy=port.endswith("/proxy")) for port in ports]
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await stop.wait()
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
