// The page: two phones, and the engine room.

import { Phone } from "./phone.js";

const LOOK_MS = 1000;
const SHOWN_EVENTS = 50;
const ACTIONS = [
  ["stop-worker", "Stop the worker"],
  ["start-worker", "Start the worker"],
  ["kill-scheduler", "Kill the scheduler"],
  ["start-scheduler", "Start the scheduler"],
  ["empty-redis", "Empty Redis"],
];

const demo = await (await fetch("members")).json();
document.querySelector("#minute").textContent = `A minute lasts ${demo.minuteSeconds} s here.`;
for (const root of document.querySelectorAll(".phone")) new Phone(root, demo);

const buttons = document.querySelector("#buttons");
for (const [action, text] of ACTIONS) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, id: action });
  button.onclick = async () => {
    await fetch(`engine/${action}`, { method: "POST", headers: { "X-Demo": "1" } });
    await look();
  };
  buttons.append(button);
}

async function look() {
  let engine;
  try {
    engine = await (await fetch("engine")).json();
  } catch {
    return;
  }
  const figures = document.querySelector("#figures");
  figures.replaceChildren(...Object.entries(engine.figures).flatMap(([name, value]) => {
    const [term, figure] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, figure.textContent] = [name, value];
    return [term, figure];
  }));
  for (const [action] of ACTIONS) document.getElementById(action).disabled = !engine.actions.includes(action);
}
setInterval(look, LOOK_MS);
look();

const names = Object.fromEntries(demo.members.map(({ id, name }) => [id, name]));
new EventSource("events").onmessage = ({ data }) => {
  const { type, targetUserId, timestamp } = JSON.parse(data);
  const entry = document.createElement("li");
  entry.textContent = `${timestamp.slice(11, 19)} ${names[targetUserId] ?? targetUserId} ${type.slice(12)}`;
  const list = document.querySelector("#events");
  list.prepend(entry);
  while (list.children.length > SHOWN_EVENTS) list.lastChild.remove();
};
