// The judge of screens: xterm.js without a window. Owns any number of terminals; says what is on each of them, and in
// what two of them differ, in all that a program or a person could ever notice.
//
//   node oracle.mjs NODE_MODULES
//
// One request a line on standard input, one answer a line on standard output, in that order, both JSON. A request is
// {op, terminal, …}; an answer is {ok: …} or {error: text}. It ends with its input. `OPERATIONS` below has them all.
//
// xterm.js is taken as it is, but for what `correct` says. What a restore cannot set right because xterm.js alone has
// it that way, `differences` leaves out; each place says why.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const load = createRequire(`${process.argv[2]}/`);
const { Terminal } = load("@xterm/headless");
const { Unicode11Addon } = load("@xterm/addon-unicode11");

const SHOWN = 24; // differences told before "and more": one mistake often makes hundreds

const terminals = new Map();

class Watched {
  constructor({ columns, rows, scrollback }) {
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.replies = [];
    this.title = "";
    this.colours = {};
    this.links = new Map();
    // What xterm.js does not keep and other terminals do: how keys are reported. Each screen has its own stack.
    this.keys = { modified: "", kitty: { normal: [], alternate: [] } };
    this.terminal = new Terminal({
      cols: columns,
      rows,
      scrollback,
      allowProposedApi: true,
      logLevel: "off",
      windowOptions: { pushTitle: true, popTitle: true },
    });
    // Widths as terminals of today have them: without it xterm.js counts an emoji as one column.
    this.terminal.loadAddon(new Unicode11Addon());
    this.terminal.unicode.activeVersion = "11";
    this.core = this.terminal._core;
    this.input = this.core._inputHandler;
    this.terminal.onData((data) => this.replies.push(data));
    this.terminal.onTitleChange((title) => (this.title = title));
    this.input.onColor((events) => events.forEach((event) => this.colour(event)));
    this.hearKeys();
    this.correct();
  }

  colour({ type, index, color }) {
    if (type === 1) this.colours[index] = color.join();
    else if (type === 2 && index === undefined) Object.keys(this.colours).forEach((one) => one < 256 && delete this.colours[one]);
    else if (type === 2) delete this.colours[index];
  }

  hearKeys() {
    const stack = () => this.keys.kitty[this.terminal.buffer.active.type];
    const hear = (prefix, final, take) =>
      this.terminal.parser.registerCsiHandler({ prefix, final }, (parameters) => {
        take(parameters.map((one) => (Array.isArray(one) ? one[0] : one)));
        return false;
      });
    hear(">", "u", ([flags]) => stack().push(flags || 0));
    hear("<", "u", ([count]) => stack().splice(-(count || 1)));
    hear("=", "u", ([flags, how]) => {
      const now = stack().pop() || 0;
      stack().push(how === 2 ? now | flags : how === 3 ? now & ~flags : flags);
    });
    hear(">", "m", ([what, level]) => what === 4 && (this.keys.modified = level ? String(level) : ""));
    this.terminal.parser.registerEscHandler({ final: "c" }, () => {
      this.keys = { modified: "", kitty: { normal: [], alternate: [] } };
      return false;
    });
  }

  // A saved cursor, as DEC's and every other terminal has it. xterm.js keeps its row counted from the start of the
  // scrollback, so that lines that scroll by move it; of the character sets only the one in use, and not which that is; and
  // neither the kind of underline nor its colour. A link is no part of it: it goes on until it ends. A reset (RIS) leaves the
  // cursor hidden, its blinking and newline mode as they were.
  correct() {
    const { input, core } = this;
    const { _charsetService: charsets, coreService, optionsService } = core;
    const [save, restore] = [input.saveCursor, input.restoreCursor];
    input.saveCursor = (...all) => {
      const buffer = core._bufferService.buffer;
      buffer.saved = {
        y: buffer.y,
        extended: input._curAttrData.extended.clone(),
        charsets: [...charsets._charsets],
        level: charsets.glevel,
      };
      return save.apply(input, all);
    };
    input.restoreCursor = (...all) => {
      const buffer = core._bufferService.buffer;
      const saved = savedOf(buffer);
      buffer.savedY = buffer.ybase + saved.y;
      const { urlId } = input._curAttrData.extended;
      const done = restore.apply(input, all);
      const extended = saved.extended ? saved.extended.clone() : new input._curAttrData.extended.constructor();
      extended.urlId = urlId;
      input._curAttrData.extended = extended;
      input._curAttrData.updateExtended();
      charsets._charsets = [...saved.charsets];
      charsets.setgLevel(saved.level);
      return done;
    };
    const soft = { intermediates: "!", final: "p" };
    this.terminal.parser.registerCsiHandler(soft, () => {
      delete core._bufferService.buffer.saved;
      return false;
    });
    // xterm.js forgets where a link leads when the line is gone on which it began.
    const register = core._oscLinkService.registerLink;
    core._oscLinkService.registerLink = (link) => {
      const id = register.call(core._oscLinkService, link);
      this.links.set(id, link.uri);
      return id;
    };
    // In origin mode xterm.js takes a row of the screen for one of the scroll region when the cursor is moved by some rows.
    input._moveCursor = (x, y) => {
      input._restrictCursor();
      const buffer = core._bufferService.buffer;
      const top = coreService.decPrivateModes.origin ? buffer.scrollTop : 0;
      input._setCursor(buffer.x + x, buffer.y + y - top);
    };
    // A tab stop that is set where a wrap is pending is one of the last column; xterm.js sets it beyond.
    const setTab = input.tabSet;
    input.tabSet = () => {
      const buffer = core._bufferService.buffer;
      if (buffer.x < core.cols) return setTab.call(input);
      buffer.tabs[core.cols - 1] = true;
      return true;
    };
    // Erasing up to the end of a row, xterm.js marks a row that is not the one below; where there is none, it fails.
    const erase = input.eraseInDisplay;
    input.eraseInDisplay = (parameters, selective) => {
      const buffer = core._bufferService.buffer;
      const { x, y } = buffer;
      if (parameters.params[0] !== 1 || x + 1 < core.cols) return erase.call(input, parameters, selective);
      buffer.x = core.cols - 2;
      erase.call(input, parameters, selective);
      buffer.x = x;
      input._eraseInBufferLine(y, core.cols - 1, core.cols, false, selective);
      if (y + 1 < core.rows) buffer.lines.get(buffer.ybase + y + 1).isWrapped = false;
      return true;
    };
    this.shareTabs();
    input.onRequestReset(() => {
      this.shareTabs();
      coreService.isCursorHidden = false;
      optionsService.options.convertEol = false;
      optionsService.options.cursorBlink = false;
    });
  }

  // Tab stops are the terminal's; xterm.js has some for each screen, and new ones each time that the alternate one is left.
  shareTabs() {
    const { normal, alt } = this.core._bufferService.buffers;
    Object.defineProperty(alt, "tabs", { get: () => normal.tabs, set: (tabs) => (normal.tabs = tabs) });
    alt.setupTabStops = () => {};
  }

  // Made narrower, xterm.js keeps what no longer fits on the alternate screen and shows it again when it is made wider.
  // Others cut it off, as programs expect. Of a wide character that is cut in two nothing stays. An alternate screen that
  // was never shown keeps the room that it had: too little, or a scrollback.
  resize(columns, rows) {
    const { normal, alt } = this.core._bufferService.buffers;
    for (const one of [normal, alt]) if (one.saved) one.savedY = one.ybase + one.saved.y;
    this.terminal.resize(columns, rows);
    if (alt.lines.length === 0) alt.lines.maxLength = rows;
    for (const one of [normal, alt]) {
      // The row of a saved cursor goes with its text.
      one.savedX = Math.min(one.savedX, columns - 1);
      if (one.saved) one.saved.y = Math.min(Math.max(one.savedY - one.ybase, 0), rows - 1);
      const blank = one.getNullCell();
      for (let y = 0; y < one.lines.length; y++) {
        const line = one.lines.get(y);
        if (line.length > columns) line.resize(columns, blank);
        if (line.getWidth(columns - 1) === 2) line.setCell(columns - 1, blank);
      }
    }
  }

  // What is no UTF-8 becomes a replacement character, one for each part that could have begun one. xterm.js drops it.
  write(bytes) {
    return new Promise((done) => this.terminal.write(this.decoder.decode(bytes, { stream: true }), done));
  }
}

const savedOf = (buffer) => buffer.saved ?? { y: 0, extended: null, charsets: [], level: 0 };

// ------------------------------------------------------------------------------------------------------------- cells

const UNDERLINES = ["", "underline", "double underline", "curly underline", "dotted underline", "dashed underline"];
const MODES = { 0: "", 0x1000000: "colour ", 0x2000000: "palette ", 0x3000000: "#" };

const paint = (mode, value) => (mode === 0 ? "" : MODES[mode] + (mode === 0x3000000 ? value.toString(16).padStart(6, "0") : value));

// What a person sees of a cell, as text: "" is an empty cell in default colours. A cell that was never written and one
// with a space in it look the same, and of a blank cell only the background is to be seen.
function look(cell, links) {
  const flags = [];
  const blank = cell.getChars().trim() === "";
  const lined = cell.isUnderline() || cell.isStrikethrough() || cell.isOverline();
  const inverse = cell.isInverse() !== 0;
  if (inverse) flags.push("inverse");
  if (!blank || lined) {
    if (cell.isBold()) flags.push("bold");
    if (cell.isDim()) flags.push("dim");
    if (cell.isBlink()) flags.push("blink");
    if (cell.isInvisible()) flags.push("invisible");
  }
  if (!blank && cell.isItalic()) flags.push("italic");
  if (cell.isUnderline()) {
    flags.push(UNDERLINES[cell.getUnderlineStyle()] || "underline");
    flags.push(underlinedIn(cell));
  }
  if (cell.isStrikethrough()) flags.push("strike");
  if (cell.isOverline()) flags.push("overline");
  const link = links(cell.extended?.urlId);
  if (link) flags.push(`link ${link}`);
  const fg = blank && !lined && !inverse ? "" : paint(cell.getFgColorMode(), cell.getFgColor());
  const bg = paint(cell.getBgColorMode(), cell.getBgColor());
  return [blank ? "" : cell.getChars(), cell.getWidth(), [fg && `in ${fg}`, bg && `on ${bg}`, ...flags].filter(Boolean).join(", ")];
}

const linksOf = (watched) => (id) => (id ? watched.links.get(id) : "");

function* cellsOf(watched, buffer, y, columns) {
  const line = buffer.getLine(y);
  const links = linksOf(watched);
  let cell;
  for (let x = 0; x < columns; x++) {
    cell = line?.getCell(x, cell);
    yield cell ? look(cell, links) : ["", 1, ""];
  }
}

const textOf = (line, columns) => line.translateToString(true, 0, columns);

// -------------------------------------------------------------------------------------------------------------- state

const charset = (table) => (!table ? "B" : table.q === "─" ? "0" : table["#"] === "£" && Object.keys(table).length === 1 ? "A" : JSON.stringify(table));

// SGR 59 makes an underline's colour that of the text; xterm.js then has it white.
const underlinedIn = (data) =>
  data.isUnderlineColorDefault() || (data.isUnderlineColorRGB() && data.getUnderlineColor() === 0xffffff)
    ? ""
    : `underlined in ${paint(data.getUnderlineColorMode(), data.getUnderlineColor())}`;

function attributes(data) {
  const underline = data.isUnderline();
  return [
    paint(data.getFgColorMode(), data.getFgColor()) || "default",
    `on ${paint(data.getBgColorMode(), data.getBgColor()) || "default"}`,
    data.isBold() && "bold",
    data.isDim() && "dim",
    data.isItalic() && "italic",
    underline && (UNDERLINES[data.getUnderlineStyle()] || "underline"),
    underline && underlinedIn(data),
    data.isBlink() && "blink",
    data.isInverse() && "inverse",
    data.isInvisible() && "invisible",
    data.isStrikethrough() && "strike",
    data.isOverline() && "overline",
    data.isProtected() && "protected",
  ]
    .filter(Boolean)
    .join(" ");
}

// Everything that is no cell: what the next byte will do, and how keys and the mouse are reported.
function stateOf(watched) {
  const { terminal, core, input } = watched;
  const service = core._bufferService;
  const buffer = service.buffer;
  const { coreService, coreMouseService, _charsetService: charsets, optionsService } = core;
  const level = charsets.glevel;
  const saved = (one) => {
    const { y, extended, charsets: sets, level: shift } = savedOf(one);
    const pen = one.savedCurAttrData.clone();
    if (extended) pen.extended = extended;
    return { x: one.savedX, y, attributes: attributes(pen), charsets: [0, 1, 2, 3].map((g) => charset(sets[g])), level: shift };
  };
  return {
    size: `${terminal.cols}x${terminal.rows}`,
    scrollback: service.buffers.normal.ybase,
    buffer: terminal.buffer.active.type,
    cursor: { x: buffer.x, y: buffer.y },
    hidden: coreService.isCursorHidden,
    cursorStyle: coreService.decPrivateModes.cursorStyle ?? optionsService.rawOptions.cursorStyle,
    cursorBlink: coreService.decPrivateModes.cursorBlink ?? optionsService.rawOptions.cursorBlink,
    modes: { ...terminal.modes },
    newLine: optionsService.rawOptions.convertEol,
    mouseEncoding: coreMouseService.activeEncoding,
    margins: [buffer.scrollTop, buffer.scrollBottom],
    tabs: Object.keys(buffer.tabs).filter((x) => buffer.tabs[x] && x < terminal.cols).map(Number),
    attributes: attributes(input._curAttrData),
    charset: charset(charsets.charset),
    charsets: [0, 1, 2, 3].map((g) => charset(charsets._charsets[g])),
    level,
    saved: { normal: saved(service.buffers.normal), alternate: saved(service.buffers.alt) },
    title: watched.title,
    titles: [...input._windowTitleStack],
    colours: { ...watched.colours },
    keys: structuredClone(watched.keys),
  };
}

// --------------------------------------------------------------------------------------------------------- comparison

class Differences {
  constructor() {
    this.told = [];
    this.count = 0;
  }

  tell(text) {
    this.count += 1;
    if (this.count <= SHOWN) this.told.push(text);
  }

  value(name, want, got) {
    if (want !== null && typeof want === "object" && got !== null && typeof got === "object" && !Array.isArray(want)) {
      for (const key of new Set([...Object.keys(want), ...Object.keys(got)])) this.value(name ? `${name}.${key}` : key, want[key], got[key]);
    } else if (JSON.stringify(want) !== JSON.stringify(got)) {
      this.tell(`${name}: ${JSON.stringify(want)} was expected, it is ${JSON.stringify(got)}`);
    }
  }

  // One line; neighbours that differ are told together.
  line(name, want, got) {
    const [left, right] = [[...want], [...got]];
    for (let x = 0; x < left.length; x++) {
      if (same(left[x], right[x])) continue;
      let end = x;
      while (end < left.length && !same(left[end], right[end])) end += 1;
      this.tell(`${name}, columns ${x}-${end - 1}: ${show(left.slice(x, end))} was expected, it is ${show(right.slice(x, end))}`);
      x = end;
    }
  }
}

const same = (a, b) => a[0] === b[0] && a[1] === b[1] && a[2] === b[2];

function show(cells) {
  const looks = [...new Set(cells.map((cell) => cell[2]))];
  const text = cells.map((cell) => cell[0] || (cell[1] === 0 ? "" : " ")).join("");
  const widths = cells.every((cell) => cell[1] === 1) ? "" : ` of widths ${cells.map((cell) => cell[1]).join("")}`;
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text) + widths + (looks.join() ? ` (${looks.join(" | ").slice(0, 200)})` : "");
}

function compareBuffers(found, name, a, b, which, from, lines) {
  const [left, right] = [a.terminal.buffer[which], b.terminal.buffer[which]];
  const columns = a.terminal.cols;
  for (let y = 0; y < lines; y++) {
    const [one, two] = [from(left) + y, from(right) + y];
    found.line(`${name} ${y}`, cellsOf(a, left, one, columns), cellsOf(b, right, two, columns));
    // Of the oldest line that is kept nobody can say what was above it.
    if (one > 0) found.value(`${name} ${y} goes on with the line above`, left.getLine(one)?.isWrapped ?? false, right.getLine(two)?.isWrapped ?? false);
  }
}

function differences(a, b, { scrollback, ignore }) {
  const found = new Differences();
  const [left, right] = [stateOf(a), stateOf(b)];
  for (const name of ["scrollback", ...ignore]) [left, right].forEach((state) => drop(state, name.split(".")));
  found.value("", left, right);
  if (left.size === right.size) {
    const rows = a.terminal.rows;
    compareBuffers(found, "row", a, b, left.buffer === "alternate" ? "alternate" : "normal", (buffer) => buffer.baseY, rows);
    if (left.buffer === "alternate") compareBuffers(found, "row below", a, b, "normal", (buffer) => buffer.baseY, rows);
    if (scrollback > 0) {
      // The other one may have more above: what it showed before it was restored.
      const [one, two] = [a.terminal.buffer.normal.baseY, b.terminal.buffer.normal.baseY];
      const lines = Math.min(one, scrollback);
      if (two < lines) found.tell(`scrollback: ${lines} lines were expected, there are ${two}`);
      else compareBuffers(found, "scrollback", a, b, "normal", (buffer) => buffer.baseY - lines, lines);
    }
  }
  if (found.count > SHOWN) found.told.push(`and ${found.count - SHOWN} more`);
  return found.told;
}

function drop(state, [name, ...rest]) {
  if (rest.length === 0) delete state[name];
  else if (state[name]) drop(state[name], rest);
}

// The main screen and its scrollback as lines that no width has broken, and where in them the cursor is, counted from
// the end of the text: what stays the same when a terminal becomes wider or narrower.
function logical(watched) {
  const buffer = watched.terminal.buffer.normal;
  const lines = [];
  let cursor = null;
  const at = buffer.baseY + buffer.cursorY;
  for (let y = 0; y < buffer.length; y++) {
    const line = buffer.getLine(y);
    const goesOn = buffer.getLine(y + 1)?.isWrapped ?? false;
    if (!line.isWrapped || lines.length === 0) lines.push("");
    if (y === at) cursor = { line: lines.length - 1, column: columnsOf(lines.at(-1)) + buffer.cursorX };
    lines[lines.length - 1] += goesOn ? line.translateToString(false) : textOf(line);
  }
  while (lines.length > cursor.line + 1 && lines.at(-1) === "") lines.pop();
  return { lines: lines.map((line) => line.trimEnd()), cursor };
}

const columnsOf = (text) => text.length;

// --------------------------------------------------------------------------------------------------------- operations

const OPERATIONS = {
  create({ terminal, columns, rows, scrollback }) {
    OPERATIONS.dispose({ terminal });
    terminals.set(terminal, new Watched({ columns, rows, scrollback }));
  },
  dispose({ terminal }) {
    terminals.get(terminal)?.terminal.dispose();
    terminals.delete(terminal);
  },
  write: ({ terminal, data }) => get(terminal).write(Buffer.from(data, "base64")),
  resize({ terminal, columns, rows }) {
    get(terminal).resize(columns, rows);
  },
  // What the terminal has answered since it was last asked: a restore must cause no answer.
  replies({ terminal }) {
    return get(terminal).replies.splice(0).join("");
  },
  text({ terminal }) {
    const buffer = get(terminal).terminal.buffer.active;
    return Array.from({ length: get(terminal).terminal.rows }, (_, y) => textOf(buffer.getLine(buffer.baseY + y), get(terminal).terminal.cols));
  },
  scrollback({ terminal }) {
    const buffer = get(terminal).terminal.buffer.normal;
    return Array.from({ length: buffer.baseY }, (_, y) => [textOf(buffer.getLine(y)), buffer.getLine(y).isWrapped]);
  },
  logical: ({ terminal }) => logical(get(terminal)),
  state: ({ terminal }) => stateOf(get(terminal)),
  // Every cell of the screen, or of the main screen below an alternate one: [characters, columns, looks].
  cells({ terminal, buffer }) {
    const watched = get(terminal);
    const which = watched.terminal.buffer[buffer];
    return Array.from({ length: watched.terminal.rows }, (_, y) => [...cellsOf(watched, which, which.baseY + y, watched.terminal.cols)]);
  },
  differences: ({ terminal, other, scrollback, ignore }) => differences(get(terminal), get(other), { scrollback, ignore }),
};

function get(name) {
  const found = terminals.get(name);
  if (!found) throw new Error(`there is no terminal ${name}; there are ${[...terminals.keys()].join(", ") || "none"}`);
  return found;
}

// xterm.js parses in a timer of its own: what it throws there is an answer as well.
async function answer(line) {
  try {
    const request = JSON.parse(line);
    const operation = OPERATIONS[request.op];
    if (!operation) throw new Error(`there is no operation ${request.op}; there are ${Object.keys(OPERATIONS).join(", ")}`);
    const broken = new Promise((_, reject) => process.once("uncaughtException", reject));
    const ok = (await Promise.race([operation(request), broken])) ?? null;
    process.removeAllListeners("uncaughtException");
    return { ok };
  } catch (error) {
    return { error: String(error.stack) };
  }
}

for await (const line of createInterface({ input: process.stdin })) process.stdout.write(`${JSON.stringify(await answer(line))}\n`);
