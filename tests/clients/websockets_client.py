"""The `websockets` library through the ingress: texts, large binaries, fragments, pings, compression, subprotocol, close.

usage: websockets_client.py HOST:PORT HOST_HEADER
"""

import asyncio
import sys

import websockets

address, host = sys.argv[1:]
ip, port = address.rsplit(":", 1)


async def main():
    uri = f"ws://{host}/socket"
    async with websockets.connect(uri, host=ip, port=int(port), max_size=None, subprotocols=["echo.test"]) as socket:
        assert socket.subprotocol == "echo.test", socket.subprotocol
        for text in ["one", "žluťoučký", "x" * 100_000]:
            await socket.send(text)
            assert await socket.recv() == text
        binary = bytes(range(256)) * 16384  # 4 MiB
        await socket.send(binary)
        assert await socket.recv() == binary
        await socket.send(["in ", "three ", "fragments"])
        assert await socket.recv() == "in three fragments"
        await asyncio.wait_for(await socket.ping(), 10)
        await asyncio.gather(*(socket.send(str(n)) for n in range(1000)))
        assert [await socket.recv() for _ in range(1000)] == [str(n) for n in range(1000)]
        await socket.close(1000, "done")
        assert socket.close_code == 1000, socket.close_code
    sockets = await asyncio.gather(*(websockets.connect(uri, host=ip, port=int(port)) for _ in range(50)))
    for number, socket in enumerate(sockets):
        await socket.send(str(number))
    assert [await socket.recv() for socket in sockets] == [str(n) for n in range(50)]
    await asyncio.gather(*(socket.close() for socket in sockets))


asyncio.run(main())
print("websockets: all well")
