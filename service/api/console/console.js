// The console: views over the HTTP API, switched by the part of the address behind `#`.
//
//   #explore/<id>?diversity=0.3     a stored note, its related notes and how they are refined
//   #explore?text=<text>            the same for a text that is not stored
//   #write, #vocabulary, #experiments, #service
//
// What the API says reaches the page as text nodes only. The key is kept in this module's memory alone.

import { Experiments } from "./experiments.js";
import { Vocabulary } from "./vocabulary.js";

const ID = /^[A-Za-z0-9._~:-]{1,128}$/;
const WORD = /^[A-Za-z]+$/;
const DOTS = /^\.{1,2}$/; // ids that no browser can ask for: it resolves them as folders
const TITLES = {
  explore: "Explore",
  write: "Write",
  vocabulary: "Hashtags",
  experiments: "Experiments",
  service: "Service",
};
const EXAMPLES = [
  "A weekend of ramen in Osaka",
  "My puppy finally sleeps through the night",
  "Repairing a garden chair with hand tools",
];
const TYPING_PAUSE_MS = 350;
const POLL_MS = 2000;
const OUTCOMES_MS = 30_000;
const UNREACHABLE_S = 5;
const DEADLINE_MS = 20_000; // above every deadline of the service
const SAMPLES_KEPT = 150;
const SAMPLES_WIDE = [30, 75, SAMPLES_KEPT]; // a chart is as wide as the least of these that takes all samples
const SAMPLES_LISTED = 15;
const LONG_TEXT = 1200; // characters

const $ = (id) => document.getElementById(id);

// Elements

/** An element. Attributes that are null or false are left out; children that are null, too. */
function make(name, attributes = {}, ...children) {
  return furnish(document.createElement(name), attributes, children);
}

function makeSvg(name, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function makeButton(className, onClick, ...children) {
  const button = make("button", { type: "button", class: className || null }, ...children);
  button.addEventListener("click", onClick);
  return button;
}

/** Text that only screen readers are told. */
const unseen = (text) => make("span", { class: "sr" }, text);

function announce(text) {
  if ($("announcement").textContent !== text) $("announcement").textContent = text;
}

const whole = new Intl.NumberFormat("en");
const count = (number, noun) => `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(share * 100)} %`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 10) return `${minutes} min${seconds % 60 < 1 ? "" : ` ${Math.floor(seconds % 60)} s`}`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// The API

/** An answer that is no success. Status 0 means that there was none. */
class Refusal extends Error {
  constructor(status, { code = "", message = "", request_id: requestId = "" }, retryAfterS = null) {
    super(message || code || String(status));
    Object.assign(this, { status, code, requestId, retryAfterS, reason: message });
  }

  static async of(answer) {
    const retryAfterS = Number.parseInt(answer.headers.get("Retry-After"), 10);
    let body = {};
    try {
      body = await answer.json();
    } catch {
      // Something between us and the service may have answered in its own words.
    }
    return new Refusal(answer.status, body?.error ?? {}, retryAfterS > 0 ? retryAfterS : null);
  }
}

let key = null;
let keyRefused = false; // the person closed the dialog; only they may open it again
let keyAsked = null;

/** The decoded answer. Throws Refusal; and whatever the signal says once it is aborted. */
async function ask(method, path, { body = null, signal }) {
  const used = key;
  const headers = {
    ...(body && { "Content-Type": "application/json" }),
    ...(used && { Authorization: `Bearer ${used}` }),
  };
  try {
    const answer = await fetch(path, {
      method,
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.any([signal, AbortSignal.timeout(DEADLINE_MS)]),
    });
    if (answer.ok) return answer.status === 204 ? null : await answer.json();
    throw await Refusal.of(answer);
  } catch (error) {
    if (signal.aborted) throw error;
    if (!(error instanceof Refusal)) throw new Refusal(0, {});
    if (![401, 403].includes(error.status) || !(await getKey(error.status, used))) throw error;
  }
  signal.throwIfAborted();
  return ask(method, path, { body, signal });
}

/** Whether there is another key now than the one that was used. */
async function getKey(status, used) {
  if (key !== used) return true;
  if (keyRefused) return false;
  keyAsked ??= openKeyDialog(status).finally(() => (keyAsked = null));
  return keyAsked;
}

function openKeyDialog(status) {
  const dialog = $("key-dialog");
  $("key-title").textContent = status === 403 ? "This key is not enough" : "This service asks for a key";
  $("key-why").textContent = whyKey(status);
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        keyRefused = !dialog.returnValue;
        if (!keyRefused) setKey($("key").value.trim());
        $("key").value = "";
        resolve(!keyRefused);
      },
      { once: true },
    );
  });
}

function whyKey(status) {
  if (status === 403) return "It lacks the scope for this. Use one that has it, or ask whoever runs the service.";
  if (key) return "It does not know the one you gave. Check it, and enter it again.";
  return "Whoever runs the service can give you one.";
}

function setKey(given) {
  key = given;
  $("forget-key").hidden = !key;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("given");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("key").addEventListener("input", ({ target }) => {
  // Anything else cannot travel in a header.
  target.setCustomValidity(/^\s*[\x21-\x7e]*\s*$/.test(target.value) ? "" : "A key is one word of plain characters.");
});
$("forget-key").addEventListener("click", () => {
  setKey(null);
  keyRefused = false;
  announce("The key is forgotten.");
  $("main").focus();
});

// Trouble, in words

const BUSY = {
  queue_full: "Too many notes wait to be read.",
  worker_unavailable: "No worker is free to read this.",
  store_unavailable: "The store does not answer.",
  index_unavailable: "The index does not answer.",
};

/** What to say; `again`: seconds until the next try by itself; `action`: what the person can do. */
function trouble({ status, code, reason, requestId, retryAfterS }) {
  switch (status) {
    case 0:
      return {
        text: "The service does not answer. Check that it runs (notellm serve) and that this page can reach it.",
        again: UNREACHABLE_S,
      };
    case 401:
      return { text: "The service asks for a key.", action: "key" };
    case 403:
      return { text: "This key may not do that. Use one that has the scope for it.", action: "key" };
    case 404:
      return { text: "No note has this id. Check the spelling; it may also have been deleted." };
    case 409:
      if (code === "alias_loop") {
        return { text: "These hashtags would stand for each other. Remove the rule that leads back first." };
      }
      return { text: "This note is stored but not searchable yet.", again: retryAfterS ?? 1 };
    case 413:
      return { text: "This is more than the service takes. Shorten it, and try again." };
    case 422:
      return { text: `The service refused this: ${reason}. Change it, and try again.` };
    case 429:
      return { text: "The service gets too many requests.", again: retryAfterS ?? UNREACHABLE_S };
    case 503:
      return { text: BUSY[code] ?? "The service is not ready.", again: retryAfterS ?? UNREACHABLE_S };
    default:
      return {
        text: `The service failed on this${requestId && `, and its log names the request ${requestId}`}. Try again later.`,
        action: "retry",
      };
  }
}

/** A sentence on the page, with at most one button and a countdown to the next try. */
class Notice {
  #place;
  #text = null;
  #countdown = make("span", { "aria-hidden": "true" });
  #timer = null;

  constructor(place) {
    this.#place = place;
  }

  clear() {
    this.stopCounting();
    this.#text = null;
    this.#place.hidden = true;
    this.#place.replaceChildren();
  }

  /** The same text again leaves the button in place, and the focus on it. */
  show(text, ...buttons) {
    this.stopCounting();
    if (text === this.#text) return;
    this.#text = text;
    this.#place.replaceChildren(make("p", {}, text, this.#countdown), ...buttons);
    this.#place.hidden = false;
    announce(text);
  }

  countDown(seconds, then) {
    this.#countdown.textContent = ` Trying again in ${seconds} s.`;
    this.#timer = setTimeout(() => (seconds > 1 ? this.countDown(seconds - 1, then) : then()), 1000);
  }

  stopCounting() {
    clearTimeout(this.#timer);
    this.#countdown.textContent = "";
  }
}

/** Runs one load at a time: a newer one ends the older, and a failure is told in the notice. */
class Loader {
  #notice;
  #region;
  #current = null;

  constructor(notice, region) {
    this.#notice = new Notice(notice);
    this.#region = region;
  }

  stop() {
    this.#current?.abort();
    this.#current = null;
    this.#region.removeAttribute("aria-busy");
    this.#notice.clear();
  }

  tell(text, ...buttons) {
    this.#notice.show(text, ...buttons);
  }

  async run(load) {
    this.#current?.abort();
    this.#notice.stopCounting();
    const current = (this.#current = new AbortController());
    this.#region.setAttribute("aria-busy", "true");
    try {
      await load(current.signal);
      if (this.#current === current) this.#notice.clear();
    } catch (error) {
      if (current.signal.aborted) return;
      if (!(error instanceof Refusal)) throw error;
      this.#explain(error, () => this.run(load));
    } finally {
      if (this.#current === current) this.#region.removeAttribute("aria-busy");
    }
  }

  #explain(refusal, retry) {
    const { text, again = null, action = null } = refusal.said ?? trouble(refusal);
    this.#notice.show(text, ...this.#buttons(again, action, retry));
    if (again !== null) this.#notice.countDown(again, retry);
  }

  #buttons(again, action, retry) {
    if (action === "key") {
      const enter = () => {
        keyRefused = false;
        retry();
      };
      return [makeButton("", enter, "Enter a key")];
    }
    if (action instanceof Element) return [action];
    return again !== null || action ? [makeButton("", retry, "Try now")] : [];
  }
}

// Words that are set one by one: hashtags, categories

class Tokens {
  #list;
  #input;
  #clean;
  #sign;
  #onChange;
  #values = [];

  constructor(place, { clean, ends, sign = "", onChange }) {
    this.#list = place.querySelector("ul");
    this.#input = place.querySelector("input");
    this.#clean = clean;
    this.#sign = sign;
    this.#onChange = onChange;
    this.#input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (ends.includes(event.key) && (this.#input.value || event.key === " ")) {
        event.preventDefault();
        this.commit();
      } else if (event.key === "Backspace" && !this.#input.value && this.#values.length) {
        this.#remove(this.#values.length - 1);
      }
    });
    this.#input.addEventListener("change", () => this.commit());
    this.#input.addEventListener("input", ({ inputType }) => {
      // One of the listed words was chosen.
      if (inputType === "insertReplacementText" && this.#input.list) this.commit();
    });
    place.addEventListener("click", (event) => event.target === place && this.#input.focus());
  }

  get values() {
    return [...this.#values];
  }

  set values(values) {
    this.#values = [...values];
    this.#draw();
  }

  /** What stands in the field becomes a token. */
  commit() {
    const word = this.#clean(this.#input.value);
    this.#input.value = "";
    if (word) this.add(word);
  }

  add(word) {
    if (this.#values.some((value) => fold(value) === fold(word))) return;
    this.#values.push(word);
    this.#draw();
    this.#onChange();
  }

  #remove(position) {
    this.#values.splice(position, 1);
    this.#draw();
    this.#input.focus();
    this.#onChange();
  }

  #draw() {
    this.#list.replaceChildren(
      ...this.#values.map((value, position) => {
        const button = makeButton(
          "",
          () => this.#remove(position),
          `${this.#sign}${value}`,
          make("span", { "aria-hidden": "true" }, " ×"),
        );
        button.setAttribute("aria-label", `Remove ${this.#sign}${value}`);
        return make("li", {}, button);
      }),
    );
  }
}

/** What two spellings of one hashtag have in common. */
const fold = (tag) => tag.normalize("NFKC").replace(/^#+/, "").toLowerCase();

const cleanTag = (text) => text.trim().replace(/^#+/, "").trim();

// Notes in lists

/** A list item for a related note. `own` are the hashtags it is compared with, `query` is kept while walking on. */
function makeResult(item, own, query = "") {
  const title = item.title || item.note_id;
  const link = make("a", { href: `#explore/${encodeURIComponent(item.note_id)}${query}` }, title);
  return make(
    "li",
    { class: "result" },
    link,
    makeScore(item.score),
    item.category || item.hashtags?.length ? makeFacts(item, own) : null,
    item.explain ? makeParts(item.explain) : null,
  );
}

function makeScore(score) {
  const fill = make("span");
  fill.style.width = `${100 * Math.min(Math.max(score, 0), 1)}%`;
  return make(
    "div",
    { class: "score" },
    make("span", { class: "bar", "aria-hidden": "true" }, fill),
    make("span", {}, unseen("Score "), score.toFixed(2)),
  );
}

function makeFacts(item, own) {
  const common = new Set((item.explain?.hashtags_in_common ?? own).map(fold));
  const tags = item.hashtags ?? [];
  return make(
    "p",
    { class: "facts" },
    item.category ? make("span", { class: "category" }, item.category) : null,
    ...tags.map((tag) => makeTag(tag, common.has(fold(tag)))),
  );
}

function makeTag(tag, common = false) {
  return make(
    "span",
    { class: common ? "tag common" : "tag" },
    `#${cleanTag(tag)}`,
    common ? unseen(", in common") : null,
  );
}

function makeParts({ cosine, popularity, half_life: halfLife, boosts, hashtags_in_common: common }) {
  const parts = [
    typeof cosine === "number" ? `cosine ${cosine.toFixed(3)}` : null,
    typeof popularity === "number" ? `popularity ${popularity.toFixed(3)}` : null,
    typeof halfLife === "number" && halfLife !== 1 ? `half-life ${halfLife.toFixed(3)}` : null,
    typeof boosts === "number" && boosts !== 1 ? `boosts ${boosts.toFixed(2)}` : null,
    common ? `${count(common.length, "hashtag")} in common` : null,
  ];
  return make("p", { class: "parts hint" }, parts.filter(Boolean).join(" · "));
}

function rememberCategories(items) {
  const known = new Set([...$("categories").children].map((option) => option.value));
  const fresh = items.map((item) => item.category).filter((category) => category && !known.has(category));
  $("categories").append(...[...new Set(fresh)].map((category) => make("option", { value: category })));
}

// Explore

const exploring = new Loader($("explore-notice"), $("found"));
const categories = new Tokens($("filter-categories"), {
  clean: (text) => text.trim(),
  ends: ["Enter"],
  onChange: refine,
});
let shown = ""; // which note or text the columns show
let published = null; // the note that was just written: its id, and after how many seconds it could be found

const textKey = (text) => `text ${text}`; // no id has a space

// Element, parameter, default, and what its text is in a body
const RULES = [
  ["filter", "filter", "", String],
  ["min-score", "min_score", "", Number],
  ["language", "language", "any", String],
  ["half-life", "half_life_days", "", Number],
  ["group-by", "group_by", "", String],
  ["diversity", "diversity", "0", Number],
  ["debias", "debias", "0", Number],
  ["limit", "k", "10", Number],
];
const CHECKS = [
  ["exclude-author", "exclude_author", "1"],
  ["duplicates", "duplicates", "keep"],
  ["explain", "explain", "1"],
];

/** The parameters of `related` that differ from their defaults. */
function filters() {
  const chosen = new URLSearchParams();
  for (const category of categories.values) chosen.append("category", category);
  for (const [id, name, usual] of RULES) {
    const value = $(id).value.trim();
    if (value !== usual) chosen.set(name, value);
  }
  for (const [id, name, value] of CHECKS) if ($(id).checked) chosen.set(name, value);
  return chosen;
}

/** The same as a body has them, for a text, which has no author. */
function rules() {
  const chosen = filters();
  const body = chosen.has("category") ? { category: chosen.getAll("category") } : {};
  for (const [, name, , read] of RULES) if (chosen.has(name)) body[name] = read(chosen.get(name));
  if (chosen.has("duplicates")) body.duplicates = chosen.get("duplicates");
  if (chosen.has("explain")) body.explain = true;
  return body;
}

function setFilters(query) {
  categories.values = query.getAll("category");
  for (const [id, name, usual] of RULES) {
    $(id).value = query.get(name) ?? usual;
    if (!$(id).value) $(id).value = usual;
  }
  for (const [id, name, value] of CHECKS) $(id).checked = query.get(name) === value;
  showFilters();
}

function showFilters() {
  $("diversity-value").textContent = $("diversity").value;
  $("debias-value").textContent = $("debias").value;
  const number = [...filters()].length;
  $("filters-count").textContent = number ? ` · ${number} set` : "";
}

const asQuery = (parameters) => (parameters.size ? `?${parameters}` : "");

function exploreHash(id, parameters) {
  return `#explore/${encodeURIComponent(id)}${asQuery(parameters)}`;
}

function textHash(text) {
  const parameters = filters();
  parameters.set("text", text);
  return `#explore?${parameters}`;
}

let refining = null;

function refine() {
  showFilters();
  clearTimeout(refining);
  refining = setTimeout(() => {
    const { view, id, query } = readHash();
    if (view !== "explore") return;
    const text = query.get("text");
    if (id) {
      renameExplored(exploreHash(id, filters()));
      open(id, (signal) => loadNote(id, signal));
    } else if (text) {
      renameExplored(textHash(text));
      open(textKey(text), (signal) => loadText(text, signal));
    }
  }, TYPING_PAUSE_MS / 2);
}

/** The address of what is shown, without a step in the history. The tab leads back to it. */
function renameExplored(hash) {
  history.replaceState(null, "", hash);
  tabOf("explore").href = hash;
}

/** Load what the columns are to show. If that fails, they do not go on showing something else. */
function open(what, load) {
  exploring.run(async (signal) => {
    try {
      await load(signal);
    } catch (error) {
      if (!signal.aborted && (shown !== what || error.status === 404)) showFound("");
      throw error;
    }
  });
}

function openExplore({ id, query }, moved) {
  const text = query.get("text");
  if (id !== null) {
    setFilters(query);
    $("query").value = id;
    if (!ID.test(id) || DOTS.test(id)) {
      refuseId(id);
    } else {
      open(id, (signal) => loadNote(id, signal, moved));
    }
  } else if (text) {
    setFilters(query);
    $("query").value = text;
    open(textKey(text), (signal) => loadText(text, signal, moved));
  } else {
    $("query").value = "";
    showStart(moved);
  }
}

function refuseId(text) {
  showFound("");
  exploring.stop();
  exploring.tell(
    "This is no id: those have 1 to 128 letters, digits and . _ ~ : - and no spaces. Correct it, or search for it as text.",
    makeSearch(text),
  );
}

const makeSearch = (text) => makeButton("", () => goToText(text), "Search for it as text");

/** The start page when `what` is empty, else the columns. */
function showFound(what) {
  shown = what;
  $("found").hidden = !what;
  $("start").hidden = true;
  const title = what ? "Explore" : "Which notes belong together?";
  $("explore-title").textContent = title;
  $("explore-title").classList.toggle("sr", Boolean(what));
}

function showStart(moved) {
  showFound("");
  if (moved) $("explore-title").focus();
  $("start").hidden = false;
  exploring.run(async (signal) => {
    const { notes } = await ask("GET", "status", { signal });
    $("start-filled").hidden = notes.live === 0;
    $("start-empty").hidden = notes.live > 0;
  });
}

async function loadNote(id, signal, moved = false) {
  if (shown !== id) published = published?.id === id ? published : null;
  const [note, related] = await Promise.allSettled([
    ask("GET", `notes/${encodeURIComponent(id)}`, { signal }),
    ask("GET", `notes/${encodeURIComponent(id)}/related${asQuery(filters())}`, { signal }),
  ]);
  signal.throwIfAborted();
  if (note.reason?.status === 404 && WORD.test(id)) {
    renameExplored(`#explore?${new URLSearchParams({ text: id })}`);
    return loadText(id, signal, moved);
  }
  // Without the store the index still answers; a note that is not there is not there for either.
  if (note.reason && (related.reason || note.reason.status === 404)) throw withWayOn(note.reason, id);
  showNote(note.value ?? { note_id: id }, moved && shown !== id);
  if (related.reason) {
    showRelated([], null);
    throw whyNoneRelated(related.reason, note.value);
  }
  const unread = saidNothing(note.value?.suggested_category, note.value?.suggested_hashtags);
  showRelated(related.value.items, note.value?.hashtags ?? [], { ...related.value, unread });
}

/** What no note has as its id may still be worth a search. */
function withWayOn(refusal, id) {
  if (refusal.status === 404) refusal.said = { ...trouble(refusal), action: makeSearch(id) };
  return refusal;
}

function whyNoneRelated(refusal, note) {
  if (refusal.status === 409 && note.status === "failed") {
    const reason = note.reason ? ` (${note.reason})` : "";
    refusal.said = {
      text: `The model could not read this note${reason}, so it has no related notes. Change the note, and publish it again.`,
    };
  }
  return refusal;
}

async function loadText(text, signal, moved = false) {
  // Its list and what the model says of it come from two routes: the rules are of the list alone.
  const [said, list] = await Promise.allSettled([
    ask("POST", "notes/tags", { body: splitText(text), signal }),
    isQuery(text)
      ? ask("POST", "search", { body: { q: text.trim(), ...rules() }, signal })
      : ask("POST", "related", { body: { text: splitText(text), ...rules() }, signal }),
  ]);
  signal.throwIfAborted();
  if (said.reason) throw said.reason;
  showDraft(text, said.value, moved);
  if (list.reason) {
    showRelated([], null);
    throw list.reason;
  }
  const tags = said.value.hashtags.map(({ tag }) => tag);
  const unread = saidNothing(said.value.category, said.value.hashtags);
  showRelated(list.value.items, tags, { ...list.value, unread });
}

/** Whether a text is words to search for, and no note with a title and a content. */
const isQuery = (text) => !text.trim().includes("\n") && text.trim().length <= 1000;

/** The tokenizer knows no word of the text. */
const saidNothing = (category, tags) => category === null && tags?.length === 0;

/** A first line that can be a title is one. */
function splitText(text) {
  const [first, ...rest] = text.trim().split("\n");
  return first.length <= 300 ? { title: first, content: rest.join("\n") } : { content: text.trim() };
}

function showNote(note, moved) {
  showFound(note.note_id);
  const known = note.title !== undefined;
  const title = note.title || (known ? "Untitled" : note.note_id);
  const card = [
    published?.id === note.note_id && published.seconds !== null
      ? make("p", { class: "good" }, `Published, and found ${duration(published.seconds)} later.`)
      : null,
    makeTitle(title),
    note.content ? makeContent(note.content) : null,
    known ? null : make("p", { class: "quiet" }, "The store does not answer, so the text of the note is missing."),
    known && (note.category || note.hashtags.length) ? makeFacts(note, []) : null,
    makeSuggestedFor(note),
    make("p", { class: "hint" }, ...noteLine(note)),
  ];
  $("note").replaceChildren(...card.filter(Boolean));
  if (moved) goToTitle();
}

function goToTitle() {
  scrollTo(0, 0);
  $("note-title").focus({ preventScroll: true });
}

const makeTitle = (text) => make("h2", { id: "note-title", tabindex: "-1" }, text);

function makeContent(content) {
  const text = make(
    "p",
    { class: "content" },
    content.length > LONG_TEXT ? `${content.slice(0, LONG_TEXT)}…` : content,
  );
  if (content.length <= LONG_TEXT) return text;
  const all = makeButton(
    "plain",
    () => {
      text.textContent = content;
      text.tabIndex = -1;
      text.focus();
      all.remove();
    },
    "Show all",
  );
  return make("div", {}, text, all);
}

function makeSuggestedFor(note) {
  const tags = note.suggested_hashtags ?? [];
  const category = note.suggested_category;
  if (!tags.length && !category) return null;
  return make(
    "div",
    { class: "model" },
    make("h3", {}, "What the model says"),
    make(
      "p",
      { class: "facts" },
      category ? make("span", { class: "category" }, `${category.name} ${percent(category.score)}`) : null,
      ...tags.map(({ tag }) => makeTag(tag)),
    ),
  );
}

function noteLine(note) {
  const date = note.created_at ? new Date(note.created_at) : null;
  const parts = [
    note.author ? `by ${note.author}` : null,
    date && !Number.isNaN(date.valueOf()) ? date.toLocaleDateString("en", { dateStyle: "medium" }) : null,
    note.exposure ? `shown ${count(note.exposure, "time")}` : null,
    note.version ? `version ${note.version}` : null,
    note.status === "pending" ? "not searchable yet" : null,
  ];
  const line = parts
    .filter(Boolean)
    .map((part) => ` · ${part}`)
    .join("");
  return [
    make("code", {}, note.note_id),
    line,
    note.status === "failed" ? make("span", { class: "failed" }, " · failed") : null,
  ].filter(Boolean);
}

function showDraft(text, answer, moved) {
  showFound(textKey(text));
  const { title = "", content } = splitText(text);
  const suggested = { suggested_hashtags: answer.hashtags, suggested_category: answer.category };
  const write = makeButton("", () => continueWriting(title, content), "Write this note");
  const card = [
    makeTitle(title || "Your text"),
    content ? makeContent(content) : null,
    makeSuggestedFor(suggested),
    make("div", { class: "actions" }, write, make("span", { class: "hint" }, "This text is not stored.")),
  ];
  $("note").replaceChildren(...card.filter(Boolean));
  if (moved) goToTitle();
}

/** With `own` null nothing is known about related notes. */
function showRelated(items, own, { degraded = false, stale = false, shards = null, unread = false } = {}) {
  const query = asQuery(filters());
  rememberCategories(items);
  $("results").replaceChildren(...items.map((item) => makeResult(item, own ?? [], query)));
  $("related-count").textContent = own === null || !items.length ? "" : `${count(items.length, "note")}, closest first`;
  $("degraded").hidden = !degraded && !stale;
  $("degraded").textContent = degraded ? whyDegraded(shards) : stale ? WHY_STALE : "";
  if (own === null) return;
  if (!items.length) $("results").append(makeNoResults(unread));
  announce(items.length ? `${count(items.length, "related note")}.` : "No related notes.");
}

const WHY_STALE = "The last edit of this note is not searchable yet: these suit the version before it.";

function whyDegraded(shards) {
  if (shards && shards.ok < shards.total)
    return `Only ${shards.ok} of ${shards.total} shards answered: some notes are missing.`;
  return "The store does not answer: titles are missing.";
}

function makeNoResults(unread) {
  if (unread) return make("li", { class: "none" }, "The model knows no word of this text, so it says nothing of it.");
  if (!filters().size) {
    return make(
      "li",
      { class: "none" },
      "Nothing else can be found yet. Write more notes, or load some: notellm load samples",
    );
  }
  return make("li", { class: "none" }, "No note passes these filters. Loosen them, or reset them under Refine.");
}

const goTo = (hash) => (location.hash === hash ? route() : (location.hash = hash));
const goToText = (text) => goTo(`#explore?${new URLSearchParams({ text })}`);

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = $("query").value.trim();
  if (!asked) return $("query").focus();
  return ID.test(asked) && !DOTS.test(asked) ? goTo(exploreHash(asked, filters())) : goToText(asked);
});
$("query").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("search").requestSubmit();
  } else if (event.key === "ArrowDown" && $("query").selectionStart === $("query").value.length) {
    walk(1, event);
  }
});
const TYPED = new Set(["filter-category", "filter"]);
$("filter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  refine();
});
$("filter-form").addEventListener("input", ({ target }) => !TYPED.has(target.id) && refine());
// Half a filter is none: it is read when it is finished.
$("filter").addEventListener("change", refine);
$("filter-form").addEventListener("reset", () =>
  setTimeout(() => {
    categories.values = [];
    refine();
  }),
);
$("examples").append(
  ...EXAMPLES.map((text) =>
    make(
      "li",
      {},
      makeButton("", () => goToText(text), text),
    ),
  ),
);

// Write

const suggesting = new Loader($("suggestions-notice"), $("suggestions"));
const publishing = new Loader($("draft-notice"), $("draft"));
const hashtags = new Tokens($("draft-hashtags"), {
  clean: cleanTag,
  ends: ["Enter", ",", " "],
  sign: "#",
  onChange: suggestSoon,
});
let draftId = newId();
let typing = null;

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `note-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function draftText() {
  return { title: $("draft-title").value.trim(), content: $("draft-content").value, hashtags: hashtags.values };
}

const saysSomething = ({ title, content }) => Boolean(title || content.trim());

function suggestSoon() {
  clearTimeout(typing);
  suggesting.stop();
  if (!saysSomething(draftText())) {
    $("suggestions").hidden = true;
    $("suggestions-empty").hidden = false;
    return;
  }
  $("suggestions").setAttribute("aria-busy", "true");
  typing = setTimeout(() => suggesting.run(suggest), TYPING_PAUSE_MS);
}

async function suggest(signal) {
  const answer = await ask("POST", "notes/tags", { body: { ...draftText(), related: 5 }, signal });
  $("suggestions-empty").hidden = true;
  $("suggestions").hidden = false;
  showSuggestedCategory(answer.category);
  keepFocus($("suggested-hashtags"), () => showSuggestedHashtags(answer.hashtags));
  rememberCategories(answer.related);
  const own = [...hashtags.values, ...answer.hashtags.map(({ tag }) => tag)];
  $("draft-related").replaceChildren(...answer.related.map((item) => makeResult(item, own)));
  if (!answer.related.length)
    $("draft-related").append(make("li", { class: "none" }, "No stored note to compare with yet."));
  announce(
    `${count(answer.hashtags.length, "hashtag")} and ${count(answer.related.length, "related note")} suggested.`,
  );
}

function showSuggestedCategory(category) {
  const { value } = $("draft-category");
  if (!category) return $("suggested-category").replaceChildren(make("li", { class: "quiet" }, "None yet."));
  const take = makeButton(
    "",
    () => {
      $("draft-category").value = category.name;
      showSuggestedCategory(category);
      $("suggested-category").querySelector("button").focus();
    },
    `${category.name} `,
    make("span", { class: "share" }, percent(category.score)),
  );
  take.setAttribute("aria-pressed", String(value === category.name));
  return $("suggested-category").replaceChildren(make("li", {}, take));
}

const SOURCES = {
  generated: "written by the model",
  neighbors: "carried by related notes",
  both: "written by the model and carried by related notes",
};

function showSuggestedHashtags(tags) {
  const items = tags.map(({ tag, score, source }) => {
    const take = makeButton(
      "",
      () => {
        keepFocus($("suggested-hashtags"), () => take.parentElement.remove());
        hashtags.add(tag);
      },
      make("span", { class: "plus", "aria-hidden": "true" }, "+ "),
      `#${tag} `,
      make("span", { class: "share" }, percent(score)),
      unseen(`, ${SOURCES[source] ?? source}`),
    );
    take.title = SOURCES[source] ?? source;
    return make("li", {}, take);
  });
  $("suggested-hashtags").replaceChildren(...items);
  if (!items.length)
    $("suggested-hashtags").append(make("li", { class: "quiet" }, "None that you do not have already."));
}

/** Whoever stood on a button of the list stands on the one in its place afterwards. */
function keepFocus(list, change) {
  const place = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  change();
  if (place < 0) return;
  const buttons = list.querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? $("draft-hashtag")).focus();
}

function continueWriting(title, content) {
  $("draft-title").value = title;
  $("draft-content").value = content;
  hashtags.values = [];
  location.hash = "#write";
  suggestSoon();
}

async function publish(signal) {
  const note = {
    ...draftText(),
    ...Object.fromEntries(["category", "author"].map((name) => [name, $(`draft-${name}`).value.trim() || null])),
  };
  const start = performance.now();
  const endHold = holdDraft();
  try {
    const { status } = await ask("PUT", `notes/${draftId}?wait=10`, { body: note, signal });
    published = { id: draftId, seconds: status === "searchable" ? (performance.now() - start) / 1000 : null };
  } finally {
    endHold();
  }
  startAnew();
  location.hash = `#explore/${encodeURIComponent(published.id)}`;
}

/** Nobody may change what is on its way. Returns what gives the form, and the focus in it, back. */
function holdDraft() {
  const focused = document.activeElement;
  $("draft").inert = true;
  $("publish").textContent = "Publishing…";
  return () => {
    $("draft").inert = false;
    $("publish").textContent = "Publish";
    focused.focus();
  };
}

function startAnew() {
  for (const field of ["title", "content", "category", "author"]) $(`draft-${field}`).value = "";
  hashtags.values = [];
  draftId = newId();
  suggestSoon();
}

// Enter in a field of one line must not publish what is half written.
$("draft").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey) $("draft").requestSubmit();
  else if (event.target.matches("input")) event.preventDefault();
});
$("draft").addEventListener("submit", (event) => {
  event.preventDefault();
  hashtags.commit();
  if (saysSomething(draftText())) {
    publishing.run(publish);
  } else {
    publishing.tell("A note needs a title or some text. Write one of them, then publish.");
    $("draft-title").focus();
  }
});
$("draft").addEventListener("input", () => publishing.stop());
for (const field of ["draft-title", "draft-content"]) $(field).addEventListener("input", suggestSoon);

// Hashtags

const vocabulary = new Vocabulary({ $, make, makeButton, ask, announce, whole, count, Loader });

// Experiments

const experiments = new Experiments({ $, make, makeSvg, ask, announce, whole, count, duration, Loader });

// Service

const polling = new Loader($("service-notice"), $("polled"));
const samples = [];
let nextPoll = null;
let outcomesAt = 0;

function startPolling() {
  stopPolling();
  // A chart's points are equally far apart: after a pause it begins anew.
  if (samples.length && Date.now() - samples.at(-1).at > 3 * POLL_MS) samples.length = 0;
  polling.run(poll);
}

function stopPolling() {
  clearTimeout(nextPoll);
  polling.stop();
}

async function poll(signal) {
  const status = await ask("GET", "status", { signal });
  samples.push({ at: new Date(), ...status });
  if (samples.length > SAMPLES_KEPT) samples.shift();
  showStatus(status);
  if (Date.now() - outcomesAt > OUTCOMES_MS) {
    outcomesAt = Date.now();
    showOutcomes(await ask("GET", "outcomes", { signal }));
  }
  nextPoll = setTimeout(() => polling.run(poll), POLL_MS);
}

function showStatus({ notes, queue, index, model, freshness_s: freshness, reach, watch, warnings }) {
  $("figures").hidden = false;
  $("warnings").hidden = warnings.length === 0;
  $("warnings").replaceChildren(...warnings.map((line) => make("p", {}, line)));
  $("polled").textContent = `As of ${clock(samples.at(-1).at)}, every ${POLL_MS / 1000} s`;
  say({
    p50: duration(freshness.p50),
    p99: duration(freshness.p99),
    "queue-depth": whole.format(queue.depth),
    "queue-oldest": queue.depth ? duration(queue.oldest_s) : "–",
    "notes-live": whole.format(notes.live),
    "notes-searchable": whole.format(notes.searchable),
    "notes-pending": whole.format(notes.pending),
    "notes-failed": whole.format(notes.failed),
    "shards-ok": `${index.shards_ok} of ${index.shards_total}`,
    generation: index.generation ?? "–",
    fingerprint: model,
    "freshness-hint":
      freshness.p50 === null
        ? "Nothing measured yet: publish a note to see how soon it is found."
        : "From acknowledged to searchable.",
  });
  say({
    coverage: reach ? fine(reach.coverage) : "–",
    gini: reach ? reach.gini.toFixed(2) : "–",
    hubs: reach ? whole.format(reach.hubs) : "–",
    "reach-hint": reach
      ? `Of the notes, today and yesterday. Hubs stand in many more lists than others, and take ${fine(reach.hub_share)} of the places.`
      : "No list was logged yet.",
  });
  showWatch(watch);
  showRecall(index.shards);
  showShards(index, model);
  draw($("freshness-chart"), "Freshness", duration, [
    { name: "p50", values: samples.map((sample) => sample.freshness_s.p50) },
    { name: "p99", values: samples.map((sample) => sample.freshness_s.p99), dashed: true },
  ]);
  draw($("queue-chart"), "Queue", whole.format, [
    { name: "waiting", values: samples.map((sample) => sample.queue.depth) },
  ]);
  draw($("notes-chart"), "Notes", whole.format, [
    { name: "searchable", values: samples.map((sample) => sample.notes.searchable) },
    { name: "live", values: samples.map((sample) => sample.notes.live), dashed: true },
  ]);
  showHistory();
}

function say(texts) {
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
}

const clock = (time) => time.toLocaleTimeString("en", { hour12: false });
const measured = (recall) => typeof recall === "number" && recall >= 0;

function showRecall(shards) {
  const recalls = shards.map((shard) => shard.recall).filter(measured);
  $("recall").textContent = recalls.length ? fine(Math.min(...recalls)) : "–";
  $("recall-hint").textContent = recalls.length
    ? "Recall compares a sample of searches with exact ones; the lowest shard counts."
    : "Recall is not measured here yet.";
}

const fine = (share) => `${(share * 100).toFixed(1)} %`;

function showShards(index, model) {
  const columns = [
    ["Shard", (shard) => shard.shard],
    ["Notes", (shard) => whole.format(shard.notes)],
    ["Delta", (shard) => (typeof shard.delta === "number" ? whole.format(shard.delta) : null)],
    ["Recall", (shard) => (measured(shard.recall) ? fine(shard.recall) : null)],
    ["Generation", (shard) => shard.generation],
    ["Recipe", (shard) => shard.recipe],
    ["Model", (shard) => (shard.fingerprint === model ? null : "another one")],
  ].filter(([, of], place) => place < 2 || index.shards.some((shard) => of(shard) !== null));
  $("shards-head").replaceChildren(
    makeRow(
      "th",
      columns.map(([name]) => name),
      { scope: "col" },
    ),
  );
  const rows = index.shards.map((shard) =>
    makeRow(
      "td",
      columns.map(([, of]) => of(shard) ?? "–"),
    ),
  );
  const silent = index.shards_total - index.shards_ok;
  if (silent > 0) {
    const text = `${count(silent, "shard")} without an answer: check its indexer.`;
    rows.push(make("tr", {}, make("td", { class: "failed", colspan: columns.length }, text)));
  }
  $("shards").replaceChildren(...rows);
}

function showWatch(watch) {
  $("watch").hidden = !watch;
  if (!watch) return;
  const { model, before, state, since, ended, detail, blocked } = watch;
  $("watch").classList.toggle("failed", Boolean(blocked) || state === "taken_back");
  const time = (text) => text.slice(0, 16).replace("T", " ");
  $("watch").textContent = {
    watching: blocked
      ? `${model} should be taken back for ${before} (${detail}), but ${blocked}.`
      : `${model} is watched since ${time(since)} UTC, against ${before} before it.`,
    kept: `${model} was watched until ${time(ended ?? since)} UTC, and kept.`,
    taken_back: `${model} was taken back for ${before} at ${time(ended ?? since)} UTC: ${detail}.`,
    unwatched: `${model} is not watched: it answered before, or was taken back once.`,
  }[state];
}

const makeRow = (cell, texts, attributes = {}) =>
  make("tr", {}, ...texts.map((text) => make(cell, attributes, String(text))));

// A rate as a dot on its interval, on the scale of all; the numbers stand beside it.
function drawRate({ rate, low, high }, most) {
  const x = (share) => 4 + (152 * share) / most;
  return makeSvg(
    "svg",
    { viewBox: "0 0 160 16", class: "rate", "aria-hidden": "true" },
    makeSvg("line", { x1: x(0), x2: x(most), y1: 8, y2: 8, class: "scale" }),
    ...(low === null ? [] : [makeSvg("line", { x1: x(low), x2: x(high), y1: 8, y2: 8, class: "interval" })]),
    makeSvg("circle", { cx: x(rate), cy: 8, r: 3.5 }),
  );
}

function showOutcomes({ sources, positions }) {
  const row = (name, { shown, clicked, rate, low, high }) => [
    name,
    whole.format(shown),
    whole.format(clicked),
    fine(rate),
    low === null ? "–" : `${fine(low)} to ${fine(high)}`,
  ];
  const rows = [
    ...sources.map((one) => row([one.scenario, one.model, one.arm].filter(Boolean).join(" · "), one)),
    ...positions.map((one) => row(`place ${one.position}${one.position === 11 ? " and below" : ""}`, one)),
  ];
  const all = [...sources, ...positions];
  const most = Math.max(...all.map(({ rate, high }) => high ?? rate), Number.EPSILON);
  $("outcomes-scale").textContent = all.length ? `0 to ${fine(most)}` : "";
  const nothing = make("tr", {}, make("td", { colspan: 6 }, "No event of these days names an answer."));
  const drawn = rows.map((texts, place) => {
    const made = makeRow("td", texts);
    made.append(make("td", {}, drawRate(all[place], most)));
    return made;
  });
  $("outcomes").replaceChildren(...(drawn.length ? drawn : [nothing]));
}

function showHistory() {
  if (!$("history").open) return;
  const rows = samples
    .slice(-SAMPLES_LISTED)
    .reverse()
    .map(({ at, notes, queue, freshness_s: freshness }) =>
      makeRow("td", [
        clock(at),
        duration(freshness.p50),
        duration(freshness.p99),
        whole.format(queue.depth),
        duration(queue.oldest_s),
        ...[notes.searchable, notes.pending, notes.failed].map((number) => whole.format(number)),
      ]),
    );
  $("samples").replaceChildren(...rows);
}

$("history").addEventListener("toggle", showHistory);

// Charts

const WIDE = 300;
const HIGH = 88;
const HEAD = 18; // room for the scale's label

/** Lines over the last samples, on one scale from zero. `values` may hold nulls: there the line has a gap. */
function draw(place, title, format, lines) {
  const known = lines.flatMap(({ values }) => values.filter((value) => value !== null));
  const top = ceiling(Math.max(0, ...known));
  const width = SAMPLES_WIDE.find((samplesWide) => samplesWide >= samples.length) - 1;
  const x = (at) => (WIDE * (width - (samples.length - 1 - at))) / width;
  const y = (value) => HIGH - ((HIGH - HEAD) * value) / top;
  const plot = makeSvg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const level of [0, top]) plot.append(makeSvg("line", { x1: 0, x2: WIDE, y1: y(level), y2: y(level) }));
  for (const { values, dashed = false } of lines) {
    const runs = runsOf(values);
    if (!dashed) plot.append(...runs.map((run) => makeSvg("path", { class: "area", d: area(run, x, y) })));
    plot.append(...runs.map((run) => makeSvg("path", { class: dashed ? "dashed" : null, d: path(run, x, y) })));
  }
  const scale = make("span", { class: "scale", "aria-hidden": "true" }, known.length ? format(top) : "");
  const span = make(
    "span",
    { class: "span", "aria-hidden": "true" },
    `last ${duration(((width + 1) * POLL_MS) / 1000)}`,
  );
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${title}: ${lines.map((line) => summary(line, format)).join("; ")}`);
  place.replaceChildren(plot, scale, span);
}

/** Values next to each other that are there, as lists of [place, value]. */
function runsOf(values) {
  const runs = [[]];
  values.forEach((value, at) => (value === null ? runs.push([]) : runs.at(-1).push([at, value])));
  return runs.filter((run) => run.length);
}

const points = (run, x, y) => run.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
const path = (run, x, y) => `M${points(run, x, y)}${run.length === 1 ? "h0.1" : ""}`;
const area = (run, x, y) =>
  `M${x(run[0][0]).toFixed(1)} ${HIGH}L${points(run, x, y)}L${x(run.at(-1)[0]).toFixed(1)} ${HIGH}Z`;

/** The least of 1, 2, 5 times a power of ten that is not below the value. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value);
}

function summary({ name, values }, format) {
  const there = values.filter((value) => value !== null);
  if (!there.length) return `${name} not measured yet`;
  return `${name} now ${format(there.at(-1))}, between ${format(Math.min(...there))} and ${format(Math.max(...there))}`;
}

// Views, and the keyboard

function readHash() {
  const [way, query = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const [view, id = null] = way.split(/\/(.*)/s);
  return {
    view: Object.hasOwn(TITLES, view) ? view : "explore",
    id: id && decoded(id),
    query: new URLSearchParams(query),
  };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const tabOf = (view) => document.querySelector(`[data-view="${view}"]`);

function route(moved = true) {
  const place = readHash();
  for (const view of Object.keys(TITLES)) $(view).hidden = view !== place.view;
  document.querySelector("[aria-current]")?.removeAttribute("aria-current");
  tabOf(place.view).setAttribute("aria-current", "page");
  if (place.view === "explore") tabOf("explore").href = location.hash || "#explore";
  document.title = `${TITLES[place.view]} – NoteLLM`;
  if (place.view !== "explore") exploring.stop();
  if (place.view === "vocabulary") vocabulary.open();
  else vocabulary.close();
  if (place.view === "experiments") experiments.open();
  else experiments.close();
  if (place.view === "service") startPolling();
  else stopPolling();
  if (place.view === "explore") openExplore(place, moved);
  else if (moved) $(`${place.view}-title`).focus();
}

/** Focus the next result of the view, or the one before; from anywhere else the first. */
function walk(by, event) {
  const list = $(readHash().view).querySelectorAll(".result a");
  const at = [...list].indexOf(document.activeElement);
  const next = list[at < 0 ? 0 : at + by];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function goToSearch() {
  if (readHash().view !== "explore") {
    history.pushState(null, "", tabOf("explore").hash);
    route(false);
  }
  $("query").select();
}

const STEPS = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };

document.addEventListener("keydown", (event) => {
  const { target, key: pressed } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || $("key-dialog").open) return;
  if (target.matches("input, textarea, select")) return;
  if (pressed === "/") {
    event.preventDefault();
    goToSearch();
  } else if (pressed in STEPS && (pressed.length === 1 || target.closest(".results"))) {
    walk(STEPS[pressed], event);
  }
});
document.addEventListener("visibilitychange", () => {
  const { view } = readHash();
  if (view === "service") (document.hidden ? stopPolling : startPolling)();
  if (view === "experiments") document.hidden ? experiments.close() : experiments.open();
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
addEventListener("hashchange", () => route());
route(false);
