// A small harness's TUI, made with what the large ones are made with: a box that is drawn again below what scrolled by.
//
//   node harness.mjs NODE_MODULES
//
// Arrow keys choose, Return puts the choice into the scrollback, letters are typed, Escape ends.

import { pathToFileURL } from "node:url";

const load = async (path) => import(pathToFileURL(`${process.argv[2]}/${path}`));
const { default: React } = await load("react/index.js");
const { render, Box, Static, Text, useApp, useInput } = await load("ink/build/index.js");

const h = React.createElement;
const CHOICES = ["Read the file 日本", "Write the file 😀", "Run the tests", "Ask a person"];

function Harness() {
  const [done, setDone] = React.useState([]);
  const [chosen, setChosen] = React.useState(0);
  const [typed, setTyped] = React.useState("");
  const [keys, setKeys] = React.useState(0);
  const { exit } = useApp();
  useInput((input, key) => {
    setKeys((before) => before + 1);
    if (key.escape) exit();
    else if (key.downArrow) setChosen((at) => (at + 1) % CHOICES.length);
    else if (key.upArrow) setChosen((at) => (at + CHOICES.length - 1) % CHOICES.length);
    else if (key.return) setDone((before) => [...before, `${before.length + 1}. ${CHOICES[chosen]} ${typed}`]);
    else setTyped((before) => before + input);
  });
  return h(
    React.Fragment,
    null,
    h(Static, { items: done }, (line) => h(Text, { key: line, color: "green" }, `✔ ${line}`)),
    h(
      Box,
      { borderStyle: "round", borderColor: "magenta", flexDirection: "column", paddingX: 1 },
      h(Text, { bold: true }, "What shall be done?"),
      ...CHOICES.map((choice, at) => h(Text, { key: choice, inverse: at === chosen, dimColor: at !== chosen }, `${at === chosen ? "❯" : " "} ${choice}`)),
      h(Text, null, "Typed: ", h(Text, { color: "#ff8800", underline: true }, typed || "nothing")),
      h(Text, null, `Keys: ${keys}`),
    ),
  );
}

render(h(Harness), { exitOnCtrlC: false });
