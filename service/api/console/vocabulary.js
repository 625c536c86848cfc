// The view of hashtags: those in use, what trends, the rules, and which of the listed ones could be one.

const LISTED = 200; // hashtags of a page
const COMPARED = 1000; // of the listed ones, the most used: each is compared with every other
const MERGES = 50;
const SPELLINGS = 3;
const TRENDS = 10;
const TYPING_PAUSE_MS = 250;

// What could be one

/** Whether one list of letters becomes the other by one letter more, less or instead, or by two neighbors that change places. */
function isOneEditAway(one, other) {
  if (one.length > other.length) [one, other] = [other, one];
  if (other.length - one.length > 1) return false;
  let start = 0;
  while (start < one.length && one[start] === other[start]) start += 1;
  const alike = (from, otherFrom) => other.slice(otherFrom).every((letter, place) => letter === one[from + place]);
  if (one.length < other.length) return alike(start, start + 1);
  const swapped = one[start] === other[start + 1] && one[start + 1] === other[start];
  return alike(start + 1, start + 1) || (swapped && alike(start + 2, start + 2));
}

/** The plurals of a hashtag that the service does not fold, since they are right for some words only. */
const plurals = (tag) => [`${tag}s`, `${tag}es`, ...(tag.endsWith("y") ? [`${tag.slice(0, -1)}ies`] : [])];

/** What a hashtag, folded, is compared by. */
const features = ({ tag, notes }) => ({
  tag,
  notes,
  letters: [...tag],
  digits: tag.replace(/\D/g, ""),
  bare: tag.normalize("NFD").replace(/\p{M}/gu, ""),
  joined: tag.replaceAll("_", ""),
  plurals: plurals(tag),
});

/** Why two hashtags may be one; null if nothing speaks for it. */
function likeness(one, other) {
  if (Math.abs(one.letters.length - other.letters.length) > 2) return null;
  if (one.digits !== other.digits) return null; // 2024 is not 2025
  if (one.bare === other.bare) return "the same but for accents";
  if (one.joined === other.joined) return "the same but for separators";
  if (one.plurals.includes(other.tag) || other.plurals.includes(one.tag)) return "one may be the plural";
  // In short words one letter makes another word.
  const long = Math.min(one.letters.length, other.letters.length) >= 6;
  return long && isOneEditAway(one.letters, other.letters) ? "one letter differs" : null;
}

/** Hashtags that could stand for a more used one, each with the most used that is like it; the most notes first. */
export function mergeable(items, ruled = new Set()) {
  const listed = items
    .filter(({ tag }) => !ruled.has(tag))
    .slice(0, COMPARED)
    .map(features);
  const pairs = new Map();
  listed.forEach((more, place) => {
    for (const less of listed.slice(place + 1)) {
      const why = pairs.has(less.tag) ? null : likeness(more, less);
      if (why) pairs.set(less.tag, { tag: less.tag, notes: less.notes, into: more.tag, why });
    }
  });
  return [...pairs.values()].sort((one, other) => other.notes - one.notes).slice(0, MERGES);
}

// The view

/** `kit`: what the console shares with its views. */
export class Vocabulary {
  #kit;
  #listing;
  #changing;
  #items = [];
  #rules = [];
  #next = null;
  #typing = null;

  constructor(kit) {
    const { $, Loader } = kit;
    this.#kit = kit;
    this.#listing = new Loader($("vocabulary-notice"), $("used-card"));
    this.#changing = new Loader($("rule-notice"), $("rules-card"));
    $("prefix").addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.open(), TYPING_PAUSE_MS);
    });
    $("prefix-form").addEventListener("submit", (event) => event.preventDefault());
    $("more-hashtags").addEventListener("click", () => this.#listing.run((signal) => this.#loadMore(signal)));
    $("rule-kind").addEventListener("change", () => this.#showTarget());
    $("rule-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
    this.#showTarget();
  }

  open() {
    this.#listing.run((signal) => this.#load(signal));
  }

  close() {
    clearTimeout(this.#typing);
    this.#listing.stop();
    this.#changing.stop();
  }

  async #load(signal) {
    const { $, ask, announce, count } = this.#kit;
    const [page, trends, rules] = await Promise.all([
      ask("GET", this.#path(), { signal }),
      ask("GET", `hashtags/trending?limit=${TRENDS}`, { signal }),
      ask("GET", "hashtags/rules", { signal }),
    ]);
    this.#items = page.items;
    this.#next = page.next;
    this.#rules = rules.items;
    this.#showTrends(trends.items);
    this.#show();
    $("vocabulary-cards").hidden = false;
    announce(`${count(this.#items.length, "hashtag")} listed.`);
  }

  async #loadMore(signal) {
    const page = await this.#kit.ask("GET", this.#path(this.#next), { signal });
    this.#items = [...this.#items, ...page.items];
    this.#next = page.next;
    this.#show();
  }

  #path(after = null) {
    const asked = new URLSearchParams({ limit: LISTED });
    const prefix = this.#kit.$("prefix").value.trim();
    if (prefix) asked.set("prefix", prefix);
    if (after) asked.set("after", after);
    return `hashtags?${asked}`;
  }

  #show() {
    this.#showUsed();
    this.#showRules();
    this.#showMerges();
  }

  #showUsed() {
    const { $, make, whole, count } = this.#kit;
    const rows = this.#items.map(({ tag, notes, spellings }) => {
      const others = spellings.length - SPELLINGS;
      const named = spellings.slice(0, SPELLINGS).map((one) => one.spelling);
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, `#${tag}`),
        make("td", {}, whole.format(notes)),
        make("td", {}, `${named.join(", ")}${others > 0 ? ` and ${whole.format(others)} more` : ""}`),
      );
    });
    if (!rows.length) rows.push(make("tr", {}, make("td", { class: "quiet", colspan: 3 }, "No note carries one.")));
    $("used").replaceChildren(...rows);
    $("used-count").textContent = `${count(this.#items.length, "hashtag")}${this.#next ? ", and more" : ""}`;
    $("more-hashtags").hidden = !this.#next;
  }

  #showTrends(trends) {
    const { $, make, count } = this.#kit;
    const items = trends.map(({ tag, notes, lift }) =>
      make(
        "li",
        {},
        make("span", { class: "tag" }, `#${tag}`),
        make("span", { class: "hint" }, `${count(notes, "note")}, ${lift.toFixed(1)} times as often`),
      ),
    );
    if (!items.length) items.push(make("li", { class: "quiet" }, "Nothing of the last week stands out."));
    $("trends").replaceChildren(...items);
  }

  #showRules() {
    const { $, make, makeButton } = this.#kit;
    const items = this.#rules.map(({ tag, alias_of: hashtag }) => {
      const remove = makeButton("plain", () => this.#change("DELETE", tag), "Remove");
      remove.setAttribute("aria-label", `Remove the rule of #${tag}`);
      const said = hashtag ? `suggested as #${hashtag}` : "never suggested";
      return make("li", {}, make("span", {}, make("span", { class: "tag" }, `#${tag}`), ` ${said}`), remove);
    });
    if (!items.length) items.push(make("li", { class: "quiet" }, "None yet: every hashtag may be suggested."));
    $("rules").replaceChildren(...items);
  }

  #showMerges() {
    const { $, make, makeButton, count } = this.#kit;
    const ruled = new Set(this.#rules.map(({ tag }) => tag));
    const items = mergeable(this.#items, ruled).map(({ tag, notes, into, why }) => {
      const merge = makeButton("", () => this.#change("PUT", tag, { alias_of: into }), "Merge");
      merge.setAttribute("aria-label", `Suggest #${into} in the place of #${tag}`);
      const facts = make("span", { class: "hint" }, ` ${why}; ${count(notes, "note")}`);
      return make("li", {}, make("span", {}, `#${tag} → #${into}`, facts), merge);
    });
    if (!items.length) items.push(make("li", { class: "quiet" }, "None of the listed hashtags look alike."));
    $("merges").replaceChildren(...items);
  }

  #showTarget() {
    const { $ } = this.#kit;
    const isAlias = $("rule-kind").value === "alias";
    $("rule-target-field").hidden = !isAlias;
    $("rule-target").required = isAlias;
  }

  #add() {
    const { $ } = this.#kit;
    const body = $("rule-kind").value === "alias" ? { alias_of: $("rule-target").value.trim() } : { blocked: true };
    this.#change("PUT", $("rule-tag").value.trim(), body, () => $("rule-form").reset());
  }

  /** Change the rule of a hashtag, and show what holds then. */
  #change(method, tag, body = null, then = () => {}) {
    const { $, ask, announce } = this.#kit;
    this.#changing.run(async (signal) => {
      await ask(method, `hashtags/${encodeURIComponent(tag)}`, { body, signal });
      this.#rules = (await ask("GET", "hashtags/rules", { signal })).items;
      then();
      this.#showTarget();
      this.#show();
      announce("The rules have changed.");
      $("rules-title").focus();
    });
  }
}
