// Runs one scenario against a running guestd: node check.mjs SCENARIO ADDRESS. Ends with 0 when it went as the protocol says.

import assert from "node:assert/strict";
import fs from "node:fs";
import net from "node:net";
import { Guest, GuestError, Kind, dataPayload, message, parse } from "./guest.mjs";
import { pack } from "./messagepack.mjs";

const ALL_BYTES = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
const scenarios = {};
/** Ids of this run's own: a job outlives the client that started it. */
const id = (name) => `${name}-${process.pid}`;

/** `size` bytes of which none of the parts look alike, as `seq` prints them in the guest. */
function numbers(size) {
  let text = "";
  for (let number = 1; text.length < size; number++) text += `${number}\n`;
  return Buffer.from(text.slice(0, size));
}

async function rejects(promise, code) {
  const error = await promise.then(
    () => assert.fail(`expected ${code}`),
    (each) => each,
  );
  assert.ok(error instanceof GuestError, String(error.stack));
  assert.equal(error.code, code, error.message);
  return error.fields;
}

scenarios.vectors = async () => {
  const plain = (value) => {
    if (Array.isArray(value)) return value.map(plain);
    if (value === null || typeof value !== "object") return value;
    if ("$bin" in value) return Buffer.from(value.$bin, "hex");
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each)]));
  };
  const read = (name) => JSON.parse(fs.readFileSync(new URL(`../../vectors/${name}.json`, import.meta.url)));
  for (const vector of read("frames")) {
    const frame = parse(Buffer.from(vector.message, "hex"));
    assert.equal(frame.name, vector.kind, vector.name);
    assert.equal(frame.channel, vector.channel, vector.name);
    let payload;
    if (vector.data) {
      const { stream, offset, bytes } = vector.data;
      assert.deepEqual([frame.stream, frame.offset, frame.data.toString("hex")], [stream, offset, bytes]);
      payload = dataPayload(stream, offset, Buffer.from(bytes, "hex"));
    } else if (vector.payload) {
      payload = Buffer.from(vector.payload, "hex");
      assert.deepEqual(frame.payload, payload);
    } else {
      assert.deepEqual(frame.fields, plain(vector.fields), vector.name);
      // A number that has no fraction is an integer to JavaScript: written shorter, and as valid.
      payload = Number.isInteger(frame.fields.cpu_system) ? frame.payload : pack(plain(vector.fields));
    }
    assert.equal(message(Kind[vector.kind], vector.channel, payload).toString("hex"), vector.message, vector.name);
  }
  for (const { frame, name, dialect } of read("refused")) {
    if (dialect !== "both" || ["open-on-channel-0", "hello-on-a-channel", "ping-too-long"].includes(name)) continue;
    assert.throws(() => {
      if (parse(Buffer.from(frame, "hex").subarray(4)).fields.length === 0) throw new Error("a list");
    }, name);
  }
};

scenarios.printf = async (guest) => {
  assert.equal(guest.hello.version, 1);
  assert.match(guest.hello.agent, /^guestd /);
  const channel = guest.open("exec", { argv: ["printf", "%s", "héllo"] });
  const start = await channel.accepted;
  assert.equal(start.created, true);
  assert.ok(start.pid > 0);
  const result = await channel.result;
  assert.equal(channel.bytes().toString(), "héllo");
  assert.deepEqual([result.outcome, result.code, result.status, result.id], ["exited", 0, 0, start.id]);
  assert.equal(result.streams.stdout.bytes, 6);
  assert.deepEqual(result.gaps, {});
};

scenarios.bytes = async (guest) => {
  const channel = guest.open("exec", { shell: "tee /dev/stderr", stdin: "stream" });
  await channel.write(ALL_BYTES);
  channel.eof();
  const result = await channel.result;
  assert.deepEqual(channel.bytes("stdout"), ALL_BYTES);
  assert.deepEqual(channel.bytes("stderr"), ALL_BYTES);
  assert.equal(result.input.bytes, 256);
  const argument = ALL_BYTES.subarray(1); // all but NUL, in an argument
  const echoed = guest.open("exec", { argv: ["printf", "%s", argument] });
  await echoed.result;
  assert.deepEqual(echoed.bytes(), argument);
};

scenarios.statuses = async (guest) => {
  const expected = [
    [{ argv: ["true"] }, "exited", 0],
    [{ shell: "exit 3" }, "exited", 3],
    [{ shell: "exit 255" }, "exited", 255],
    [{ shell: "kill -9 $$" }, "signaled", 137],
    [{ argv: ["/nowhere/at/all"] }, "not_started", 127],
    [{ argv: ["/etc/passwd"] }, "not_started", 126],
    [{ argv: ["true"], cwd: "/nowhere" }, "not_started", 125],
    [{ argv: ["sleep", "1000"], timeout: 0.2 }, "timed_out", 124],
  ];
  const results = await Promise.all(expected.map(([fields]) => guest.ask("exec", fields)));
  expected.forEach(([fields, outcome, status], at) => {
    assert.deepEqual([results[at].outcome, results[at].status], [outcome, status], JSON.stringify(fields));
  });
  assert.equal(results[3].signal_name, "SIGKILL");
  assert.equal(results[4].errno_name, "ENOENT");
  assert.equal(results[6].stage, "cwd");
  assert.equal(results[7].ended_by, "timeout");
};

scenarios.resume = async (guest, address) => {
  const size = 300000;
  const request = { id: id("resume"), shell: `seq 1 1000000 | head -c ${size}; echo over >&2; exit 7` };
  await guest.close();
  // A first client reads some and is gone, with the job held by its credit.
  const first = await Guest.connect(address, { window: 50000, giveCredit: false });
  const before = first.open("exec", request);
  await before.until(() => before.bytes().length === 50000);
  await first.close();
  await rejects(before.result, "lost");
  const second = await Guest.connect(address);
  const after = second.open("exec", { ...request, from: { stdout: 50000, stderr: 0 } });
  assert.equal((await after.accepted).created, false);
  const result = await after.result;
  assert.deepEqual(Buffer.concat([before.bytes(), after.bytes()]), numbers(size));
  assert.equal(after.bytes("stderr").toString(), "over\n");
  assert.deepEqual([result.status, result.gaps], [7, {}]);
  // Once more, from the middle, as a viewer of what is over.
  const again = second.open("attach", { id: id("resume"), from: { stdout: 299990, stderr: 5 } });
  assert.equal((await again.result).status, 7);
  assert.deepEqual(again.bytes(), numbers(size).subarray(299990));
  await rejects(second.ask("attach", { id: id("resume"), from: { stdout: size + 1 } }), "bad_offset");
  await second.close();
};

scenarios.gap = async (guest) => {
  const size = 100000;
  await guest.ask("exec", { id: id("gap"), shell: `seq 1 1000000 | head -c ${size}`, tape: 4096, detach: true });
  assert.equal((await guest.ask("wait", { id: id("gap") })).status, 0);
  const channel = guest.open("attach", { id: id("gap"), from: { stdout: 1000, stderr: 0 } });
  const { streams } = await channel.accepted;
  const result = await channel.result;
  assert.deepEqual(streams.stdout, { start: size - 4096, end: size });
  assert.deepEqual(channel.events, [{ event: "gap", stream: 1, from: 1000, to: size - 4096 }]);
  assert.deepEqual(channel.bytes(), numbers(size).subarray(size - 4096));
  assert.deepEqual(result.gaps, { stdout: size - 4096 - 1000 });
};

scenarios.reject = async (guest) => {
  const wrong = await rejects(guest.ask("exec", { argv: 5 }), "bad_request");
  assert.equal(wrong.field, "argv");
  assert.equal(typeof wrong.expected, "string");
  assert.equal((await rejects(guest.ask("exec", { argv: [] }), "bad_request")).field, "argv");
  assert.equal((await rejects(guest.ask("no such thing"), "unsupported")).field, "op");
  await rejects(guest.ask("wait", { id: id("never-was") }), "not_found");
  await guest.ask("exec", { id: id("once"), argv: ["true"] });
  await rejects(guest.ask("exec", { id: id("once"), argv: ["false"] }), "conflict");
  assert.equal((await guest.ask("exec", { argv: ["true"] })).status, 0);
};

scenarios.credit = async (guest) => {
  // `data` in guest.mjs throws when the server sends more than it has credit for.
  const small = guest.open("exec", { shell: "seq 1 1000000 | head -c 200000", window: 1000 });
  const result = await small.result;
  assert.deepEqual(small.bytes(), numbers(200000));
  assert.equal(result.status, 0);
  // A channel whose client gives no credit waits, and another one does not notice.
  guest.giveCredit = false;
  const stuck = guest.open("exec", { shell: "seq 1 1000000 | head -c 3000000", window: 10 });
  await stuck.until(() => stuck.bytes().length === 10);
  assert.equal((await guest.ask("exec", { argv: ["printf", "ok"] })).status, 0);
  guest.giveCredit = true;
  stuck.window = 1 << 20;
  stuck.owed = 1 << 20;
  stuck.pay();
  assert.equal((await stuck.result).status, 0);
  assert.deepEqual(stuck.bytes(), numbers(3000000));
};

scenarios.input = async (guest) => {
  const bulk = numbers(1000000); // four windows
  const channel = guest.open("exec", { id: id("input"), argv: ["cat"], stdin: "stream" });
  await channel.write(bulk);
  // Sent twice, arrives once.
  channel.inputOffset = 999990;
  await channel.write(bulk.subarray(999990));
  channel.eof();
  const result = await channel.result;
  assert.deepEqual(channel.bytes(), bulk);
  assert.equal(result.input.bytes, bulk.length);
  const hole = guest.open("exec", { argv: ["cat"], stdin: "stream", kill_on_disconnect: true });
  await hole.accepted;
  guest.send(Kind.DATA, hole.number, dataPayload(0, 5, Buffer.from("x")));
  await rejects(hole.result, "bad_offset");
  assert.equal((await guest.ask("exec", { argv: ["true"] })).status, 0);
};

scenarios.kill = async (guest) => {
  const channel = guest.open("exec", { id: id("kill"), shell: "echo up; exec sleep 1000" });
  await channel.until(() => channel.bytes().length > 0);
  const killed = await guest.ask("kill", { id: id("kill") });
  const result = await channel.result;
  for (const each of [killed, result]) {
    assert.deepEqual([each.outcome, each.signal_name, each.status, each.ended_by], ["signaled", "SIGTERM", 143, "kill"]);
  }
  const early = await guest.ask("kill", { id: id("early") });
  assert.equal(early.state, "unknown");
  const late = await guest.ask("exec", { id: id("early"), argv: ["true"] });
  assert.deepEqual([late.outcome, late.stage, late.ended_by], ["not_started", "killed", "kill"]);
  const interrupted = guest.open("exec", { shell: "trap 'echo got it; exit 9' INT; echo up; while :; do sleep 0.05; done" });
  await interrupted.until(() => interrupted.bytes().length > 0);
  interrupted.event({ event: "signal", signal: "INT" });
  assert.equal((await interrupted.result).status, 9);
  assert.equal(interrupted.bytes().toString(), "up\ngot it\n");
};

scenarios.reset = async (guest) => {
  const channel = guest.open("exec", { id: id("reset"), shell: "echo up; read line; exit 4", stdin: "stream" });
  await channel.until(() => channel.bytes().length > 0);
  channel.giveUp();
  await rejects(channel.result, undefined);
  // The job goes on, and the number is free for another request.
  guest.next = channel.number;
  const back = guest.open("attach", { id: id("reset"), input: true });
  assert.equal(back.number, channel.number);
  const { input } = await back.accepted;
  back.inputOffset = input.offset;
  await back.write(Buffer.from("go\n"));
  assert.equal((await back.result).status, 4);
  assert.equal(back.bytes().toString(), "up\n");
};

scenarios.ping = async (guest) => {
  assert.deepEqual(await guest.ping(ALL_BYTES.subarray(192)), ALL_BYTES.subarray(192));
  assert.deepEqual(await guest.ping(Buffer.alloc(0)), Buffer.alloc(0));
  const status = await guest.ask("status");
  assert.equal(status.session_id, guest.hello.session_id);
  assert.ok(Array.isArray((await guest.ask("ps")).jobs));
};

scenarios.malformed = async (guest, address) => {
  guest.link.send(Buffer.from("0900000000", "hex"));
  assert.equal((await guest.closed).code, "protocol");
  const second = await Guest.connect(address);
  second.send(Kind.HELLO, 0, { version: 1 });
  assert.equal((await second.closed).code, "protocol");
  const third = await Guest.connect(address);
  third.send(Kind.OPEN, 2, { op: "ps" });
  assert.equal((await third.closed).code, "protocol");
  if (!address.startsWith("ws:")) {
    const wrong = net.connect(address.replace(/^unix:/, ""));
    const chunks = [];
    // What guestd did not read may turn its close into a reset; its last words come before that.
    wrong.on("error", (error) => assert.equal(error.code, "ECONNRESET"));
    wrong.on("data", (bytes) => chunks.push(bytes)).write("hello?");
    await new Promise((resolve) => wrong.on("close", resolve));
    const answer = Buffer.concat(chunks);
    assert.equal(parse(answer.subarray(12)).fields.code, "protocol");
  }
  const fine = await Guest.connect(address);
  assert.equal((await fine.ask("exec", { argv: ["true"] })).status, 0);
  await fine.close();
};

const [name, address] = process.argv.slice(2);
if (!name) console.log(Object.keys(scenarios).join("\n"));
else if (name === "vectors") await scenarios.vectors();
else {
  const guest = await Guest.connect(address);
  await scenarios[name](guest, address);
  await guest.close();
}
