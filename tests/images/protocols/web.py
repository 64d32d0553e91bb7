"""A web app of every kind of HTTP: plain, streamed both ways, ranges, events, WebSocket, trailers, early refusals."""

import asyncio
import hashlib
import os

from aiohttp import WSMsgType, web

CONTENT = bytes(range(256)) * 4096  # 1 MiB


async def hello(request):
    await asyncio.sleep(float(request.query.get("sleep", "0")))
    return web.Response(text=f"hello from {os.environ.get('K_REVISION', '?')}\n")


async def echo(request):
    """Sends back what comes, as it comes."""
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def digest(request):
    seen, length = hashlib.sha256(), 0
    async for chunk in request.content.iter_any():
        seen.update(chunk)
        length += len(chunk)
    return web.Response(text=f"{length} {seen.hexdigest()}\n")


async def ranged(request):
    rest = request.http_range
    if rest.start is None and rest.stop is None:
        return web.Response(body=CONTENT, headers={"accept-ranges": "bytes"})
    start, stop, _ = rest.indices(len(CONTENT))
    part = CONTENT[start:stop]
    place = f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    return web.Response(status=206, body=part, headers={"content-range": place})


async def refuse(request):
    """Answers before the body was read."""
    raise web.HTTPForbidden(text="not taken\n")


async def events(request):
    """One event at once, the next every tenth of a second."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
    await response.prepare(request)
    for number in range(int(request.query.get("count", "5"))):
        await response.write(f"id: {number}\ndata: event {number}\n\n".encode())
        await asyncio.sleep(0.1)
    await response.write_eof()
    return response


async def socket(request):
    websocket = web.WebSocketResponse(max_msg_size=0, protocols=("echo.test",))
    await websocket.prepare(request)
    async for message in websocket:
        if message.type == WSMsgType.TEXT:
            await websocket.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
    return websocket


async def page(request):
    return web.Response(content_type="text/html", text="""<!doctype html><title>protocols</title><body><script>
const say = text => { const p = document.createElement('p'); p.textContent = text; document.body.append(p); };
say('page loaded');
const events = new EventSource('/events?count=3');
events.onmessage = e => { say(e.data); if (e.lastEventId === '2') events.close(); };
const socket = new WebSocket((location.protocol === 'https:' ? 'wss://' : 'ws://') + location.host + '/socket');
socket.onopen = () => socket.send('through the socket');
socket.onmessage = e => { say(e.data); socket.close(); };
</script>""")


def app():
    made = web.Application(client_max_size=0)
    made.add_routes([
        web.get("/", hello), web.route("*", "/echo", echo), web.route("*", "/digest", digest), web.get("/range", ranged),
        web.post("/refuse", refuse), web.get("/events", events), web.get("/socket", socket), web.get("/page", page),
    ])
    return made


if __name__ == "__main__":
    web.run_app(app(), port=int(os.environ["PORT"]), print=None, shutdown_timeout=5, access_log=None)
