// Node's own fetch through the ingress: streams both ways, events as they come, a cancelled answer, HEAD.
// usage: node node_client.mjs ORIGIN   (its host must lead to the server)
import assert from 'node:assert/strict';
import dns from 'node:dns';

// Names below .localhost are this machine's, which not every resolver knows.
dns.lookup = (name, options, callback) => {
  const found = { address: '127.0.0.1', family: 4 };
  options.all ? callback(null, [found]) : callback(null, found.address, found.family);
};

const origin = process.argv[2];
const text = new TextEncoder();

const hello = await fetch(`${origin}/`);
assert.equal(hello.status, 200);
assert.match(await hello.text(), /^hello from /);
assert.equal((await fetch(`${origin}/range`, { method: 'HEAD' })).headers.get('content-length'), String(1 << 20));

// Chunk for chunk: the next is sent once the one before has come back.
let arrived;
const next = () => new Promise(resolve => { arrived = resolve; });
let waiting = next();
const body = new ReadableStream({
  async start(controller) {
    for (let number = 0; number < 5; number++) {
      controller.enqueue(text.encode(`chunk ${number};`));
      await waiting;
    }
    controller.close();
  },
});
const echoed = await fetch(`${origin}/echo`, { method: 'POST', body, duplex: 'half' });
let all = '';
for await (const chunk of echoed.body) {
  all += new TextDecoder().decode(chunk);
  const woken = arrived;
  waiting = next();
  woken();
}
assert.equal(all, [0, 1, 2, 3, 4].map(n => `chunk ${n};`).join(''));

// The first event is here long before the last one is made.
const begun = performance.now();
const events = await fetch(`${origin}/events?count=10`);
let first;
let stream = '';
for await (const chunk of events.body) {
  first ??= performance.now() - begun;
  stream += new TextDecoder().decode(chunk);
}
assert.equal(stream.match(/data: event/g).length, 10);
assert.ok(first < (performance.now() - begun) / 2, `the first event came after ${first} ms`);

const leaving = new AbortController();
const endless = await fetch(`${origin}/events?count=100000`, { signal: leaving.signal });
const reader = endless.body.getReader();
await reader.read();
leaving.abort();
await assert.rejects(reader.read());
console.log('node: all well');
