// MessagePack, as much of it as the protocol needs: nil, flags, numbers, text, bytes, lists, maps.

export function pack(value) {
  const parts = [];
  put(parts, value);
  return Buffer.concat(parts);
}

function put(parts, value) {
  if (value === null || value === undefined) parts.push(Buffer.of(0xc0));
  else if (typeof value === "boolean") parts.push(Buffer.of(value ? 0xc3 : 0xc2));
  else if (typeof value === "number" && Number.isInteger(value)) parts.push(integer(value));
  else if (typeof value === "number") {
    const number = Buffer.alloc(9);
    number[0] = 0xcb;
    number.writeDoubleBE(value, 1);
    parts.push(number);
  } else if (typeof value === "string") {
    const bytes = Buffer.from(value, "utf8");
    parts.push(head(bytes.length, [31, 0xa0], 0xd9, 0xda, 0xdb), bytes);
  } else if (value instanceof Uint8Array) {
    parts.push(head(value.length, null, 0xc4, 0xc5, 0xc6), value);
  } else if (Array.isArray(value)) {
    parts.push(head(value.length, [15, 0x90], null, 0xdc, 0xdd));
    for (const each of value) put(parts, each);
  } else if (typeof value === "object") {
    const entries = Object.entries(value);
    parts.push(head(entries.length, [15, 0x80], null, 0xde, 0xdf));
    for (const [name, each] of entries) {
      put(parts, name);
      put(parts, each);
    }
  } else throw new TypeError(`cannot pack a ${typeof value}`);
}

function head(size, fix, one, two, four) {
  if (fix && size <= fix[0]) return Buffer.of(fix[1] | size);
  if (one !== null && size < 0x100) return Buffer.of(one, size);
  if (size < 0x10000) return Buffer.of(two, size >> 8, size & 0xff);
  const wide = Buffer.alloc(5);
  wide[0] = four;
  wide.writeUInt32BE(size, 1);
  return wide;
}

function integer(value) {
  if (value >= 0 && value < 0x80) return Buffer.of(value);
  if (value < 0 && value >= -32) return Buffer.of(value & 0xff);
  const number = Buffer.alloc(9);
  if (value < 0) {
    number[0] = 0xd3;
    number.writeBigInt64BE(BigInt(value), 1);
    return number;
  }
  if (value < 0x100) return Buffer.of(0xcc, value);
  if (value < 0x10000) return Buffer.of(0xcd, value >> 8, value & 0xff);
  if (value < 0x100000000) {
    number[0] = 0xce;
    number.writeUInt32BE(value, 1);
    return number.subarray(0, 5);
  }
  number[0] = 0xcf;
  number.writeBigUInt64BE(BigInt(value), 1);
  return number;
}

export function unpack(bytes) {
  const reader = new Reader(bytes);
  const value = reader.value();
  if (reader.at !== bytes.length) throw new Error("there is more behind the value");
  return value;
}

const strict = new TextDecoder("utf-8", { fatal: true });

class Reader {
  constructor(bytes) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  take(size) {
    const from = this.at;
    if (from + size > this.bytes.length) throw new Error("the value is cut short");
    this.at += size;
    return this.bytes.subarray(from, this.at);
  }

  value() {
    const type = this.take(1)[0];
    if (type < 0x80) return type;
    if (type < 0x90) return this.map(type & 15);
    if (type < 0xa0) return this.list(type & 15);
    if (type < 0xc0) return this.text(type & 31);
    if (type >= 0xe0) return type - 0x100;
    switch (type) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.take(this.take(1)[0]);
      case 0xc5: return this.take(this.take(2).readUInt16BE());
      case 0xc6: return this.take(this.take(4).readUInt32BE());
      case 0xca: return this.take(4).readFloatBE();
      case 0xcb: return this.take(8).readDoubleBE();
      case 0xcc: return this.take(1)[0];
      case 0xcd: return this.take(2).readUInt16BE();
      case 0xce: return this.take(4).readUInt32BE();
      case 0xcf: return Number(this.take(8).readBigUInt64BE());
      case 0xd0: return this.take(1).readInt8();
      case 0xd1: return this.take(2).readInt16BE();
      case 0xd2: return this.take(4).readInt32BE();
      case 0xd3: return Number(this.take(8).readBigInt64BE());
      case 0xd9: return this.text(this.take(1)[0]);
      case 0xda: return this.text(this.take(2).readUInt16BE());
      case 0xdb: return this.text(this.take(4).readUInt32BE());
      case 0xdc: return this.list(this.take(2).readUInt16BE());
      case 0xdd: return this.list(this.take(4).readUInt32BE());
      case 0xde: return this.map(this.take(2).readUInt16BE());
      case 0xdf: return this.map(this.take(4).readUInt32BE());
      default: throw new Error(`0x${type.toString(16)} begins no value of this protocol`);
    }
  }

  text(size) {
    const bytes = this.take(size);
    try {
      return strict.decode(bytes);
    } catch {
      return Buffer.from(bytes); // a name of the system's that is no UTF-8
    }
  }

  list(size) {
    const found = [];
    for (let count = 0; count < size; count++) found.push(this.value());
    return found;
  }

  map(size) {
    const found = {};
    for (let count = 0; count < size; count++) {
      const name = this.value();
      found[name] = this.value();
    }
    return found;
  }
}
