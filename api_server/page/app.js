"use strict";
// Everything that came from elsewhere, a model's name or a reason, is put in as text: never as markup, and in no line to paste unless it
// is plain. The key is in `key` alone.

const EVERY_S = 5;
const TIMEOUT_S = 15;
// A name that means nothing to a shell, to JSON, to YAML or to TOML.
const PLAIN = /^[A-Za-z0-9][A-Za-z0-9._:\/@+-]*$/;
const ABILITIES = { completion: "chat", embedding: "embeddings" };

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat();
const here = new URL(".", location.href).href.replace(/\/$/, "");
const ADDRESS = /^https?:\/\/[\w.:[\]\/%-]+$/.test(here) ? here : location.origin;

let key = "";
let timer;
let round = 0;
let shown = "";
let fleet = null;
let guides = [];

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function count(amount, one, many) {
  return `${number.format(amount)} ${amount === 1 ? one : many}`;
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

// A model of embeddings is none for an agent.
function talks(model) {
  return model.abilities === null || model.abilities.includes("completion");
}

function say(text, wrong = false) {
  const status = byId("status");
  status.classList.toggle("bad", wrong);
  // It is read aloud when it changes, and only then.
  if (status.textContent !== text) status.textContent = text;
}

function table(caption, columns, rows) {
  const kind = (column) => (column.startsWith("#") ? { class: "number" } : {});
  const head = columns.map((column) => element("th", { scope: "col", ...kind(column) }, column.replace("#", "")));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((cell, at) => element(at ? "td" : "th", { ...(at ? {} : { scope: "row" }), ...kind(columns[at]) }, cell))),
  );
  const parts = [element("caption", {}, caption), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body)];
  return element("table", {}, ...parts);
}

function terms(list, pairs) {
  list.replaceChildren(...pairs.map(([term, text]) => element("div", {}, element("dt", {}, term), element("dd", {}, text))));
}

function showSummary() {
  const { models } = fleet;
  const ready = models.filter((model) => model.replicas.some((replica) => replica.ready));
  const agentic = models.filter(talks);
  const known = agentic.filter((model) => model.warm_conversations !== null);
  const least = known.length < agentic.length ? "at least " : "";
  const agents = known.length ? least + number.format(sum(known.map((model) => model.warm_conversations))) : "not known";
  terms(byId("summary"), [
    ["Models that answer", `${ready.length} of ${models.length}`],
    ["Agents with full context that stay warm", agents],
    ["Conversations held", number.format(sum(models.flatMap((model) => model.replicas.map((replica) => replica.conversations))))],
    ["Requests at work", number.format(fleet.in_flight)],
    ["Requests that wait", number.format(sum(models.map((model) => model.waiting)))],
  ]);
}

function warmth(model) {
  if (!talks(model)) return "";
  if (model.warm_conversations === null) return "How many conversations its replicas keep warm is not known here.";
  const now = model.warm_conversations_now;
  const present = now === null ? "" : `, or ${number.format(now)} of the mean length of now`;
  const turns = model.turns_per_minute === null ? "" : ` Answers up to ${number.format(model.turns_per_minute)} of their turns a minute.`;
  const agents = count(model.warm_conversations, "agent", "agents");
  return `Keeps ${agents} of full context warm${present}, in slots and in the cache of each replica.${turns}`;
}

function card(model) {
  const ready = model.replicas.filter((replica) => replica.ready).length;
  const state = model.replicas.length ? `${ready} of ${count(model.replicas.length, "replica", "replicas")} ready` : "no replica";
  const facts = [model.context_length === null ? "context not known" : `${number.format(model.context_length)} tokens of context`];
  if (model.aliases.length) facts.push(`also called ${model.aliases.join(", ")}`);
  if (!model.named) facts.push("your key reaches it by its other names alone");
  if (model.waiting) facts.push(`${count(model.waiting, "request waits", "requests wait")}`);
  const abilities = (model.abilities || []).map((name) => element("li", {}, ABILITIES[name] || name));
  const said = ({ ready, reason }) => `${ready ? "ready" : "not ready"}${reason && `: ${reason}`}`;
  const rows = model.replicas.map((replica, at) => [
    String(at + 1),
    element("span", { class: replica.ready ? "good" : "bad" }, said(replica)),
    `${replica.in_flight} of ${replica.places}`,
    number.format(replica.conversations),
    number.format(replica.tokens),
  ]);
  return element(
    "article",
    {},
    element("div", {}, element("h3", {}, model.id), element("span", { class: `state ${ready ? "good" : "bad"}` }, state)),
    element("p", { class: "note" }, facts.join(" · ")),
    abilities.length
      ? element("ul", { "aria-label": "What it can do" }, ...abilities)
      : element("p", { class: "note" }, "What it can do is not known yet."),
    warmth(model) ? element("p", { class: "note" }, warmth(model)) : null,
    rows.length ? table(`Replicas of ${model.id}`, ["Replica", "State", "#At work", "#Conversations", "#Tokens held"], rows) : null,
  );
}

function showAliases() {
  byId("aliases-section").hidden = !fleet.aliases.length;
  const rows = fleet.aliases.map((alias) => [
    alias.name,
    alias.model,
    alias.next === null ? "none" : `${alias.share} % of the conversations, to ${alias.next}`,
  ]);
  byId("aliases").replaceChildren(table("Names that lead to a model", ["Name", "Goes to", "Canary"], rows));
}

function showKey() {
  const { name, owner, expires, models, limits, usage } = fleet.key;
  const limit = (value) => (value === null ? "no limit of its own" : number.format(value));
  byId("holder-name").textContent = `Key ${name}`;
  terms(byId("own"), [
    ["Name", name],
    ...(owner ? [["Owner", owner]] : []),
    ["Expires", expires === null ? "never" : new Date(expires).toLocaleString()],
    ["Models", models.length ? models.join(", ") : "all"],
    ["Requests a minute", limit(limits.requests_per_minute)],
    ["Tokens a minute", limit(limits.tokens_per_minute)],
    ["Requests at once", limit(limits.concurrency)],
  ]);
  const fields = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens"];
  const rows = usage.map((each) => [each.model, ...fields.map((field) => number.format(each[field]))]);
  if (rows.length > 1) rows.push(["all", ...fields.map((field) => number.format(sum(usage.map((each) => each[field]))))]);
  const columns = ["Model", "#Requests", "#Prompt", "#From cache", "#Answer"];
  const nothing = element("p", { class: "note" }, "Nothing was asked with it yet.");
  byId("usage").replaceChildren(rows.length ? table("Requests and tokens of this key", columns, rows) : nothing);
  const started = new Date(fleet.started).toLocaleString();
  byId("usage-note").textContent =
    `Counted by this gateway alone, since it started on ${started}. What was used before, or through another gateway, is not in it. ` +
    "Tokens from a cache are a part of the prompt.";
}

// Each name that the key may say, with the context that a conversation can rely on.
function choices() {
  const models = new Map(fleet.models.map((model) => [model.id, model]));
  const own = fleet.models.filter((model) => model.named && talks(model)).map((model) => [model.id, model.context_length]);
  const others = fleet.aliases.map((alias) => {
    const behind = [alias.model, alias.next].map((id) => models.get(id)).filter(Boolean);
    const lengths = behind.map((model) => model.context_length).filter((length) => length !== null);
    return behind.every(talks) ? [alias.name, lengths.length ? Math.min(...lengths) : null] : null;
  });
  return [...own, ...others.filter(Boolean)];
}

function showChoices() {
  const select = byId("model");
  const every = choices();
  const plain = every.filter(([name]) => PLAIN.test(name));
  const names = plain.map(([name]) => name);
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    const before = select.value;
    select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(before)) select.value = before;
  }
  byId("picker").hidden = !names.length;
  const strange = every.length - names.length;
  byId("clients-note").textContent = strange
    ? `${count(strange, "name is", "names are")} not offered here: a shell or a settings file could take a character for its own.`
    : names.length ? "" : "Your key may use no model that answers in words.";
  showClients(new Map(plain));
}

function filled(lines, model, length) {
  const kept = length === null ? lines.split("\n").filter((line) => !line.includes("{context}")).join("\n") : lines;
  const values = { address: ADDRESS, model, context: String(length) };
  return kept.replace(/\{(address|model|context)\}/g, (_, name) => values[name]);
}

function showClients(lengths) {
  const model = byId("model").value;
  byId("clients").hidden = !model;
  if (!model) return;
  for (const [at, guide] of guides.entries()) {
    const text = filled(guide.lines, model, lengths.get(model) ?? null);
    const pre = byId(`lines-${at}`);
    if (pre.textContent !== text) pre.textContent = text;
  }
}

function guideOf(section, at) {
  const [, title, note, lines] = /^(.+)\n([^]*?)```\w+\n([^]*?)\n```/.exec(section);
  return { title, note: note.trim(), lines, at };
}

function guideElement({ title, note, at }) {
  const words = note.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
  const pre = element("pre", { id: `lines-${at}`, tabindex: "0", role: "group", "aria-label": `Lines for ${title}` });
  // Who comes by keyboard can copy at once.
  pre.addEventListener("focus", () => { if (pre.matches(":focus-visible")) getSelection().selectAllChildren(pre); });
  const copy = element("button", { type: "button", "aria-label": `Copy the lines for ${title}` }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(pre.textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  // Browsers give the clipboard to pages of https and of this machine alone.
  copy.hidden = !navigator.clipboard;
  return element("details", {}, element("summary", {}, title), element("p", { class: "note" }, ...words), pre, copy);
}

async function loadGuides() {
  const response = await fetch("page/clients.md", { credentials: "omit", redirect: "error" });
  if (!response.ok) throw new Error(String(response.status));
  guides = (await response.text()).split(/^## /m).slice(1).map(guideOf);
  byId("clients").replaceChildren(...guides.map(guideElement));
}

function show(text) {
  byId("time").textContent = `Asked at ${new Date().toLocaleTimeString()}.`;
  byId("fleet").hidden = byId("holder").hidden = false;
  if (!byId("entry").hidden) {
    byId("entry").hidden = true;
    byId("models-title").focus();
  }
  if (text === shown) return;
  shown = text;
  fleet = JSON.parse(text);
  showSummary();
  byId("models").replaceChildren(...fleet.models.map(card));
  showAliases();
  showKey();
  showChoices();
}

// The page takes a tenth of what the key may ask in a minute, at most.
function pause() {
  const limit = fleet && fleet.key.limits.requests_per_minute;
  return limit ? Math.max(EVERY_S, Math.ceil(600 / limit)) : EVERY_S;
}

function forget(why = "") {
  clearTimeout(timer);
  round += 1;
  key = shown = "";
  fleet = null;
  for (const id of ["summary", "models", "aliases", "own", "usage", "model"]) byId(id).replaceChildren();
  byId("holder-name").textContent = "";
  byId("fleet").hidden = byId("holder").hidden = true;
  byId("entry").hidden = false;
  document.body.classList.remove("away");
  say(why, Boolean(why));
}

async function ask() {
  const response = await fetch("fleet", {
    headers: { Authorization: `Bearer ${key}` },
    cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    signal: AbortSignal.timeout(TIMEOUT_S * 1000),
  });
  return { response, text: await response.text() };
}

function reason({ response, text }) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The answer was ${response.status}, which is none of this gateway's.`;
  }
}

async function refresh() {
  clearTimeout(timer);
  if (!key || document.hidden) return;
  const mine = ++round;
  let next = pause();
  try {
    if (!guides.length) await loadGuides();
    const answer = await ask();
    if (mine !== round) return;
    const { response, text } = answer;
    if (response.status === 401) {
      forget(reason(answer));
      byId("key").focus();
      return;
    }
    if (!response.ok) {
      next = Number(response.headers.get("Retry-After")) || next;
      throw new Error(reason(answer));
    }
    show(text);
    next = pause();
    document.body.classList.remove("away");
    say(`Asked again every ${next} s, while this tab is shown.`);
  } catch (error) {
    if (mine !== round) return;
    document.body.classList.add("away");
    const away = error instanceof TypeError || error.name === "TimeoutError";
    const old = fleet ? " What you see is what it said last." : "";
    say(`${away ? "The gateway does not answer." : error.message} Asked again every ${next} s.${old}`, true);
  }
  timer = setTimeout(refresh, next * 1000);
}

byId("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = byId("key");
  const typed = input.value.trim();
  input.value = "";
  if (!/^[\x21-\x7e]+$/.test(typed)) {
    say("A key has printable characters alone, and no spaces.", true);
    input.focus();
    return;
  }
  key = typed;
  say("Asking the gateway.");
  refresh();
});
byId("forget").addEventListener("click", () => {
  forget();
  byId("key").focus();
});
byId("model").addEventListener("change", showChoices);
byId("plain").hidden = window.isSecureContext;
document.addEventListener("visibilitychange", refresh);
window.addEventListener("pagehide", () => forget());
