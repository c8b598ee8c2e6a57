// A client of guestd, written from docs/protocol.md alone.

import net from "node:net";
import { pack, unpack } from "./messagepack.mjs";

const PREFACE = Buffer.from("0067756573746401", "hex");
export const Kind = {
  HELLO: 0x01, GOAWAY: 0x02, PING: 0x03, PONG: 0x04,
  OPEN: 0x10, ACCEPT: 0x11, REJECT: 0x12, DATA: 0x13, EVENT: 0x14, CREDIT: 0x15, END: 0x16, RESET: 0x17,
};
const NAMES = Object.fromEntries(Object.entries(Kind).map(([name, kind]) => [kind, name]));
const RAW = new Set([Kind.DATA, Kind.PING, Kind.PONG]);
const WINDOW = 1024 * 1024;
export const STREAMS = { stdout: 1, stderr: 2 };

export class GuestError extends Error {
  constructor(fields) {
    super(`${fields.code}: ${fields.message}`);
    this.fields = fields;
    this.code = fields.code;
  }
}

/** What follows `length` in a native frame, and is a whole message over WebSocket. */
export function message(kind, channel, payload) {
  const bytes = Buffer.alloc(5 + payload.length);
  bytes[0] = kind;
  bytes.writeUInt32LE(channel, 1);
  payload.copy(bytes, 5);
  return bytes;
}

export function parse(bytes) {
  const kind = bytes[0];
  const channel = bytes.readUInt32LE(1);
  const payload = bytes.subarray(5);
  const frame = { kind, name: NAMES[kind], channel, payload };
  if (!frame.name) throw new Error(`kind ${kind} is none`);
  if (!RAW.has(kind)) frame.fields = unpack(payload);
  if (kind === Kind.DATA) {
    frame.stream = payload[0];
    frame.offset = Number(payload.readBigUInt64LE(1));
    frame.data = payload.subarray(9);
  }
  return frame;
}

export function dataPayload(stream, offset, data) {
  const head = Buffer.alloc(9);
  head[0] = stream;
  head.writeBigUInt64LE(BigInt(offset), 1);
  return Buffer.concat([head, data]);
}

/** A native link: frames over a stream socket. */
class Native {
  constructor(socket) {
    this.socket = socket;
    this.pending = Buffer.alloc(0);
    this.preface = false;
    this.onmessage = () => {};
    this.onclose = () => {};
    socket.on("data", (bytes) => this.arrived(bytes));
    socket.on("close", () => this.onclose());
    socket.on("error", () => {});
    socket.write(PREFACE);
  }

  arrived(bytes) {
    this.pending = Buffer.concat([this.pending, bytes]);
    if (!this.preface) {
      if (this.pending.length < PREFACE.length) return;
      if (!this.pending.subarray(0, PREFACE.length).equals(PREFACE)) throw new Error("no preface");
      this.pending = this.pending.subarray(PREFACE.length);
      this.preface = true;
    }
    while (this.pending.length >= 4) {
      const length = this.pending.readUInt32LE();
      if (this.pending.length < 4 + length) break;
      const bytes = this.pending.subarray(4, 4 + length);
      this.pending = this.pending.subarray(4 + length);
      this.onmessage(bytes);
    }
  }

  send(bytes) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(bytes.length);
    this.socket.write(Buffer.concat([length, bytes]));
  }

  close() {
    this.socket.destroy();
  }
}

/** A WebSocket link: one message, one frame. */
class Web {
  constructor(socket) {
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    this.onmessage = () => {};
    this.onclose = () => {};
    socket.addEventListener("message", (event) => this.onmessage(Buffer.from(event.data)));
    socket.addEventListener("close", () => this.onclose());
  }

  send(bytes) {
    this.socket.send(bytes);
  }

  close() {
    this.socket.close();
  }
}

async function dial(address) {
  if (address.startsWith("ws://")) {
    if (!globalThis.WebSocket) throw new Error(`node ${process.version} has no WebSocket: use 22 or newer`);
    const socket = new WebSocket(address);
    await new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve, { once: true });
      socket.addEventListener("error", () => reject(new Error(`cannot reach ${address}`)), { once: true });
    });
    return new Web(socket);
  }
  const [scheme, ...rest] = address.split(":");
  const socket =
    scheme === "unix" ? net.connect(rest.join(":")) : net.connect({ host: rest[0], port: Number(rest[1]) });
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return new Native(socket);
}

export class Guest {
  static async connect(address, options = {}) {
    const guest = new Guest(await dial(address), options);
    await guest.greeted;
    return guest;
  }

  constructor(link, { window = WINDOW, giveCredit = true, token } = {}) {
    this.link = link;
    this.window = window;
    this.giveCredit = giveCredit;
    this.channels = new Map();
    this.next = 1;
    this.pongs = [];
    this.goaway = null;
    this.greeted = new Promise((resolve, reject) => Object.assign(this, { welcome: resolve, refuse: reject }));
    this.greeted.catch(() => {});
    this.closed = new Promise((resolve) => {
      link.onclose = () => {
        const error = new GuestError(this.goaway ?? { code: "lost", message: "the connection ended" });
        this.refuse(error);
        for (const channel of this.channels.values()) channel.fail(error);
        this.channels.clear();
        resolve(this.goaway);
      };
    });
    link.onmessage = (bytes) => this.received(parse(bytes));
    this.send(Kind.HELLO, 0, {
      version: 1,
      agent: "node-example 1.0",
      limits: { frame: 4 * 1024 * 1024, window },
      ...(token ? { token } : {}),
    });
  }

  send(kind, channel, fields) {
    this.link.send(message(kind, channel, fields instanceof Uint8Array ? fields : pack(fields)));
  }

  received(frame) {
    switch (frame.kind) {
      case Kind.HELLO:
        this.hello = frame.fields;
        this.welcome();
        break;
      case Kind.GOAWAY:
        this.goaway = frame.fields;
        break;
      case Kind.PING:
        this.send(Kind.PONG, 0, frame.payload);
        break;
      case Kind.PONG:
        this.pongs.shift()?.(frame.payload);
        break;
      default:
        this.channels.get(frame.channel)?.received(frame);
    }
  }

  ping(bytes) {
    this.send(Kind.PING, 0, bytes);
    return new Promise((resolve) => this.pongs.push(resolve));
  }

  open(op, fields = {}) {
    while (this.channels.has(this.next)) this.next += 2;
    const channel = new Channel(this, this.next, fields.window ?? this.window);
    this.channels.set(channel.number, channel);
    this.send(Kind.OPEN, channel.number, { op, ...fields });
    return channel;
  }

  /** A request of which only the result matters. */
  ask(op, fields) {
    return this.open(op, fields).result;
  }

  close() {
    this.link.close();
    return this.closed;
  }
}

export class Channel {
  constructor(guest, number, window) {
    this.guest = guest;
    this.number = number;
    this.window = window;
    this.allowed = window; // what the server may still send
    this.owed = 0;
    this.credit = guest.hello?.limits.window ?? 0; // what may still be sent to the server
    this.moreCredit = null;
    this.inputOffset = 0;
    this.output = { 1: [], 2: [] };
    this.position = { 1: null, 2: null };
    this.events = [];
    this.watchers = [];
    this.accepted = new Promise((resolve, reject) => Object.assign(this, { accept: resolve, noAccept: reject }));
    this.result = new Promise((resolve, reject) => Object.assign(this, { end: resolve, noEnd: reject }));
    this.accepted.catch(() => {});
    this.result.catch(() => {});
  }

  fail(error) {
    this.closed = true;
    this.noAccept(error);
    this.noEnd(error);
    this.moreCredit?.();
  }

  over() {
    this.closed = true;
    this.guest.channels.delete(this.number);
    this.moreCredit?.();
  }

  received(frame) {
    switch (frame.kind) {
      case Kind.ACCEPT:
        this.accept(frame.fields);
        break;
      case Kind.REJECT:
        this.over();
        this.fail(new GuestError(frame.fields));
        break;
      case Kind.END:
        this.over();
        this.end(frame.fields);
        break;
      case Kind.RESET:
        if (!this.reset) this.guest.send(Kind.RESET, this.number, {});
        this.over();
        this.fail(new GuestError(frame.fields));
        break;
      case Kind.CREDIT:
        this.credit += frame.fields.bytes;
        this.moreCredit?.();
        break;
      case Kind.EVENT:
        this.events.push(frame.fields);
        if (frame.fields.event === "gap") this.position[frame.fields.stream] = frame.fields.to;
        break;
      case Kind.DATA:
        this.data(frame);
    }
    for (const watch of this.watchers) watch();
  }

  data({ stream, offset, data }) {
    if (data.length > this.allowed) throw new Error("the server sent more than it had credit for");
    const at = this.position[stream];
    if (at !== null && offset !== at) throw new Error(`stream ${stream} went from ${at} to ${offset} without a gap`);
    this.position[stream] = offset + data.length;
    this.output[stream].push(Buffer.from(data));
    this.allowed -= data.length;
    this.owed += data.length;
    if (this.guest.giveCredit && this.owed * 2 >= this.window) this.pay();
  }

  pay() {
    this.guest.send(Kind.CREDIT, this.number, { bytes: this.owed });
    this.allowed += this.owed;
    this.owed = 0;
  }

  bytes(name = "stdout") {
    return Buffer.concat(this.output[STREAMS[name]]);
  }

  /** Wait until something that arrives makes `condition` true. */
  until(condition) {
    return new Promise((resolve, reject) => {
      const look = () => condition() && resolve();
      this.watchers.push(look);
      this.result.catch(reject);
      look();
    });
  }

  async write(bytes) {
    let rest = bytes;
    while (rest.length && !this.closed) {
      if (this.credit === 0) {
        await new Promise((resolve) => (this.moreCredit = resolve));
        this.moreCredit = null;
        continue;
      }
      const part = rest.subarray(0, Math.min(this.credit, 65536));
      this.credit -= part.length;
      this.guest.send(Kind.DATA, this.number, dataPayload(0, this.inputOffset, part));
      this.inputOffset += part.length;
      rest = rest.subarray(part.length);
    }
  }

  event(fields) {
    this.guest.send(Kind.EVENT, this.number, fields);
  }

  eof() {
    this.event({ event: "eof", offset: this.inputOffset });
  }

  giveUp() {
    this.reset = true;
    this.guest.send(Kind.RESET, this.number, {});
  }
}
