// The view of experiments and of turns of learning: what readers say of two models, and how far the next one is.

const POLL_MS = 10_000;
const STALE_MS = 36 * 3600 * 1000; // of the report of an experiment that runs
const WIDE = 160; // of an interval
const HIGH = 96; // of the days
const GUARDS = {
  failed: "Answers that failed",
  empty: "Empty lists",
  seconds: "Mean time of a list",
  notes: "Different notes in lists",
};
const OUTCOMES = { refused: "refused", shipped: "shipped", taken_back: "taken back" };
const STATES = { done: "done", runs: "runs", waits: "waits", failed: "failed", next: "next", open: "" };
const EXPORT = "notellm events export --to ./data/events --reports";

const NO_EXPERIMENT = {
  text: "None runs. To compare two models, or two sets of rules for lists, on a part of the readers:",
  command: "notellm experiment start NAME --arms A=FINGERPRINT B=FINGERPRINT,diversity=0.3 --share 0.2",
};
const NO_TURN = {
  text: "No turn yet. From what readers did to a better model, as far as it gets; run it again, and it goes on:",
  command: "notellm learn",
};

const minute = (time) => `${time.slice(0, 10)} ${time.slice(11, 16)}`;
const signed = (text, number) => `${number < 0 ? "−" : "+"}${text}`;
const points = (share, digits = 2) => `${(share * 100).toFixed(digits)} %`;
const change = (value, digits = 1) => signed(points(Math.abs(value), digits), value);
const between = (low, high, format) => (low === null ? "–" : `${format(low)} to ${format(high)}`);

/** A scale that holds all estimates with their intervals, and some room. */
function rangeOf(estimates) {
  const ends = estimates.filter(Boolean).flatMap(({ value, low, high }) => [low ?? value, high ?? value]);
  if (!ends.length) return [0, 1];
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const room = (most - least || most || 1) / 10;
  return [Math.max(least - room, 0), most + room];
}

/** What to do now, in a sentence, and the command for it; null of an experiment that is over. */
export function nextStep({ name, state, arms }, report, isLearning) {
  const [, second] = arms;
  const stop = `notellm experiment stop ${name}`;
  if (state !== "runs") return null;
  if (!report) return { text: "Nobody has counted yet. Whoever has the exported events does it:", command: EXPORT };
  if (isLearning) return { text: "notellm learn decides by these figures whenever it runs.", command: "notellm learn" };
  const fallen = report.guards.filter((guard) => guard.says);
  if (report.finding === "broken_split") {
    return { text: "Stop it, and find what loses answers of one arm. A new try needs a new name.", command: stop };
  }
  if (report.finding === "worse") return { text: `Stop it: readers of ${second.name} lose by it.`, command: stop };
  if (report.finding === "better" && !fallen.length) {
    const rules = rulesOf(second);
    const then = rules ? ` Requests have to give its rules (${rules}) from then on.` : "";
    const ship = `notellm experiment ship ${name} ${second.name}`;
    return { text: `Give everybody the model of ${second.name}.${then}`, command: ship };
  }
  if (report.finding === "better") return { text: "Stop it, unless the clicks are worth that to you.", command: stop };
  if (fallen.length) return { text: "Stop it, unless you can wait for the clicks to make up for that.", command: stop };
  return { text: "Let it run, and count again as often as you like: the interval allows for it.", command: EXPORT };
}

/** Good and bad news look it; a better arm of which a guard falls is neither. */
const toneOf = ({ finding, guards }) => (finding === "better" && guards.some(({ says }) => says) ? "" : finding);

const rulesOf = ({ rules }) =>
  Object.entries(rules)
    .map(([rule, value]) => `${rule}=${value}`)
    .join(", ");

/** `kit`: what the console shares with its views. */
export class Experiments {
  #kit;
  #loading;
  #timer = null;
  #known = "";

  constructor(kit) {
    this.#kit = kit;
    this.#loading = new kit.Loader(kit.$("experiments-notice"), kit.$("experiments-found"));
  }

  open() {
    this.close();
    this.#loading.run((signal) => this.#load(signal));
  }

  close() {
    clearTimeout(this.#timer);
    this.#loading.stop();
  }

  async #load(signal) {
    const { $, ask, announce, count } = this.#kit;
    const [{ items }, { turns }] = await Promise.all([
      ask("GET", "experiments", { signal }),
      ask("GET", "learning", { signal }),
    ]);
    const running = items.filter(({ state }) => state === "runs");
    const detailed = await Promise.all(running.map(({ name }) => ask("GET", `experiments/${name}`, { signal })));
    const known = JSON.stringify([items, turns, detailed]);
    // Whoever reads or has opened something is not disturbed by the same again.
    if (known !== this.#known) {
      this.#known = known;
      this.#show(detailed, items.filter(({ state }) => state !== "runs"), turns);
      announce(`${count(running.length, "experiment")} running, ${count(turns.length, "turn")} of learning.`);
    }
    $("experiments-found").hidden = false;
    this.#timer = setTimeout(() => this.open(), POLL_MS);
  }

  #show(running, over, turns) {
    const { $, make } = this.#kit;
    const learned = new Set(turns.map(({ experiment }) => experiment));
    const isLearned = ({ name }) => learned.has(name);
    $("running").replaceChildren(
      ...(running.length
        ? running.map((one) => make("article", { class: "card" }, ...this.#experiment(one, isLearned(one), "h3")))
        : [this.#none(NO_EXPERIMENT)]),
    );
    const [last, ...earlier] = turns;
    $("turns").replaceChildren(
      ...(last
        ? [make("article", { class: "card" }, ...this.#turn(last, "h3"))]
        : [this.#none(NO_TURN)]),
      ...earlier.map((turn) => this.#folded(`${turn.name}: ${outcomeOf(turn)}`, () => this.#turn(turn))),
    );
    $("over-title").hidden = !over.length;
    $("over").replaceChildren(
      ...over.map((one) => {
        const end = one.shipped ? `shipped ${one.shipped}` : "stopped";
        return this.#folded(`${one.name}: ${end} ${minute(one.ended)}`, async () => {
          const { ask } = this.#kit;
          const found = await ask("GET", `experiments/${one.name}`, { signal: AbortSignal.timeout(POLL_MS) });
          return this.#experiment(found, isLearned(one));
        });
      }),
    );
  }

  #none({ text, command }) {
    const { make } = this.#kit;
    return make("div", { class: "none" }, make("p", {}, text), this.#command(command));
  }

  #command(command) {
    const { make } = this.#kit;
    return make("pre", { tabindex: 0 }, make("code", {}, command));
  }

  /** Something that is filled when it is opened for the first time. */
  #folded(title, fill) {
    const { make } = this.#kit;
    const place = make("details", { class: "card" }, make("summary", {}, title));
    const show = async () => {
      place.removeEventListener("toggle", show);
      try {
        place.append(make("div", { class: "unfolded" }, ...(await fill())));
      } catch {
        place.addEventListener("toggle", show); // the notice of the next poll says why
      }
    };
    place.addEventListener("toggle", show);
    return place;
  }

  // An experiment

  #experiment(one, isLearning, heading = null) {
    const { make } = this.#kit;
    const { name, share, started, ended, report } = one;
    const [first, second] = one.arms;
    const span = `${ended ? `${minute(started)} to ${minute(ended)}` : `since ${minute(started)}`} UTC`;
    const facts = `${span}, ${points(share, 1)} of the readers, half of them in each arm`;
    const step = nextStep(one, report, isLearning);
    return [
      make(
        "div",
        { class: "heading" },
        heading && make(heading, { class: "title" }, name),
        make("span", { class: "hint" }, facts),
      ),
      report && make("p", { class: `verdict ${toneOf(report)}` }, report.verdict),
      step && make("div", { class: "step" }, make("p", {}, step.text), this.#command(step.command)),
      this.#arms(one, report),
      report && this.#changes(report, name, first.name, second.name),
      report && this.#days(report, name, first.name, second.name),
      report && this.#guards(report, name, first.name, second.name),
      report && make("p", { class: "hint" }, this.#asOf(one, report)),
    ].filter(Boolean);
  }

  #asOf({ state }, { made, until, impressions, split }) {
    const old = state === "runs" && Date.now() - Date.parse(made) > STALE_MS;
    return [
      `Counted ${minute(made)} UTC${until ? `, with answers until ${minute(until)}` : ""}.`,
      old ? `That is a while ago: ${EXPORT} counts again.` : "",
      split.holds
        ? `Readers are split as planned (p = ${split.p_value.toPrecision(2)}).`
        : `Readers are not split as planned (p = ${split.p_value.toPrecision(2)}).`,
      impressions
        ? "Shown are items with an impression or a click."
        : "Nobody reports impressions: every item of a list counts as shown.",
    ]
      .filter(Boolean)
      .join(" ");
  }

  #arms(one, report) {
    const { make, whole } = this.#kit;
    const arms = report?.arms ?? [];
    const [from, to] = rangeOf(arms.map(({ ctr }) => ctr));
    const rows = one.arms.map((arm, place) => {
      const found = arms[place];
      const ctr = found?.ctr;
      const rules = rulesOf(arm);
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, make("span", { class: `arm ${place ? "" : "dashed"}` }), arm.name),
        make("td", {}, make("code", {}, arm.model), rules ? ` ${rules}` : ""),
        ...(found
          ? [
              make("td", {}, whole.format(found.readers)),
              make("td", {}, whole.format(found.shown)),
              make("td", {}, whole.format(found.clicked)),
              make("td", {}, ctr ? points(ctr.value) : "–"),
              make("td", {}, ctr ? between(ctr.low, ctr.high, points) : "–"),
              make("td", {}, ctr ? this.#interval(ctr, from, to, place === 0) : ""),
            ]
          : []),
      );
    });
    const measured = ["Readers", "Shown", "Clicked", "Click-through", "95% interval"];
    return this.#table(
      `Arms of ${one.name}`,
      ["Arm", "Model", ...(report ? measured : [])],
      rows,
      report && `${points(from)} to ${points(to)}`,
    );
  }

  #changes({ clicks, hashtags, arms }, name, first, second) {
    const { make } = this.#kit;
    const changes = [
      ["Clicks an item", clicks],
      ...(hashtags || arms.some(({ suggested }) => suggested) ? [["Hashtags accepted", hashtags]] : []),
    ];
    const reach = Math.max(...changes.flatMap(([, one]) => (one ? [one.low, one.high].map(Math.abs) : [])), 0.01);
    const rows = changes.map(([what, one]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, what),
        make("td", {}, one ? change(one.value) : "too early"),
        make("td", {}, one ? between(one.low, one.high, change) : "–"),
        make("td", {}, one ? this.#interval(one, -reach, reach) : ""),
      ),
    );
    return this.#table(
      `Changes of ${name}`,
      [`${second} against ${first}`, "Change", "95% interval, holds at every look"],
      rows,
      `−${points(reach, 0)} to +${points(reach, 0)}`,
    );
  }

  #guards({ guards }, name, first, second) {
    const { make, whole, duration } = this.#kit;
    const formats = { seconds: duration, notes: (number) => whole.format(number) };
    const rows = guards.map((guard) => {
      const format = formats[guard.name] ?? points;
      const value = (number) => (number === null ? "–" : format(number));
      const isShare = !(guard.name in formats);
      const ends = (bound) => (isShare ? `${signed(Math.abs(100 * bound).toFixed(2), bound)}` : change(bound));
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, GUARDS[guard.name] ?? guard.name),
        make("td", {}, value(guard.first)),
        make("td", {}, value(guard.second)),
        make("td", {}, `${between(guard.low, guard.high, ends)}${guard.low !== null && isShare ? " points" : ""}`),
        make("td", { class: guard.says ? "failed" : null }, guard.says ? "falls" : "holds"),
      );
    });
    return this.#table(`Guards of ${name}`, [`What ${second} may not do worse`, first, second, "Change", ""], rows);
  }

  #days({ days }, name, first, second) {
    const { make } = this.#kit;
    if (days.length < 2) return null;
    const rows = days.map(({ day, ...of }) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, day),
        ...["first", "second"].map((arm) =>
          make("td", {}, of[arm] ? `${points(of[arm].value)} (${between(of[arm].low, of[arm].high, points)})` : "–"),
        ),
      ),
    );
    return make(
      "div",
      {},
      this.#dayChart(days, name, [first, second]),
      make(
        "details",
        {},
        make("summary", {}, "The days as a table"),
        this.#table(`Click-through of ${name} by day`, ["Day (UTC)", first, second], rows),
      ),
    );
  }

  /** On a scale of what there is, as dots may be: bars would have to begin at zero. */
  #dayChart(days, name, arms) {
    const { make, makeSvg } = this.#kit;
    const of = days.map(({ first, second }) => [first, second]);
    const [from, to] = rangeOf(of.flat());
    const x = (place, arm) => `${((100 * (place + 0.5 + (arm ? 0.12 : -0.12))) / days.length).toFixed(2)}%`;
    const y = (share) => 4 + ((HIGH - 8) * (to - share)) / (to - from);
    const plot = makeSvg("svg", { height: HIGH, "aria-hidden": "true" });
    for (const level of [from, to]) plot.append(makeSvg("line", { x1: 0, x2: "100%", y1: y(level), y2: y(level) }));
    arms.forEach((_, arm) => {
      const group = makeSvg("g", { class: arm ? null : "dashed" });
      of.forEach((both, place) => {
        if (!both[arm]) return;
        const { value, low, high } = both[arm];
        const at = x(place, arm);
        if (low !== null) group.append(makeSvg("line", { class: "interval", x1: at, x2: at, y1: y(low), y2: y(high) }));
        group.append(makeSvg("circle", { cx: at, cy: y(value), r: 3.5 }));
      });
      plot.append(group);
    });
    const lastly = (one) => (one ? points(one.value) : "nothing shown");
    const last = arms.map((arm, place) => `${arm} ${lastly(of.at(-1)[place])}`).join(", ");
    const label = `${name}: ${days.length} days; on ${days.at(-1).day} ${last}`;
    return make(
      "figure",
      { class: "days" },
      make("figcaption", { class: "hint" }, `Click-through by day, with intervals; ${points(from)} to ${points(to)}`),
      make("div", { role: "img", "aria-label": label }, plot),
      make("p", { class: "hint spread" }, make("span", {}, days[0].day), make("span", {}, days.at(-1).day)),
    );
  }

  // A turn

  #turn(turn, heading = null) {
    const { make } = this.#kit;
    const news = [
      unseenOf("hashtag", "hashtags", turn.hashtags, (name) => `#${name}`),
      unseenOf("category", "categories", turn.categories, (name) => name),
    ].filter(Boolean);
    return [
      make(
        "div",
        { class: "heading" },
        heading && make(heading, { class: "title" }, turn.name),
        make("span", { class: "hint" }, `begun ${minute(turn.begun)} UTC, last heard of ${minute(turn.told)}`),
      ),
      make("p", { class: `verdict ${turn.outcome ?? ""}` }, verdictOf(turn)),
      make("ol", { class: "steps" }, ...turn.steps.map((step) => this.#step(step))),
      turn.gate.length ? this.#gate(turn) : null,
      news.length ? make("p", { class: "hint" }, `New to the serving model: ${news.join("; ")}.`) : null,
    ].filter(Boolean);
  }

  #step({ name, about, state, at, took_s: took, says }) {
    // What is waited for, and what went wrong, stands above all steps.
    const said = state === "done" ? says : about;
    const { make, duration } = this.#kit;
    const ended = took > 1 ? `, took ${duration(took)}` : "";
    const when = at ? `${state === "runs" ? "since " : ""}${minute(at)}${ended}` : "";
    return make(
      "li",
      { class: state },
      make("span", { class: "state" }, STATES[state] ?? state),
      make("span", { class: "name" }, name),
      make("span", { class: state === "done" ? null : "quiet" }, said),
      make("span", { class: "hint" }, when),
    );
  }

  #gate({ gate, name }) {
    const { make, duration } = this.#kit;
    const isTime = (row) => row.name.startsWith("seconds");
    const ends = ({ low, high }) => (low === null ? [] : [low, high].map(Math.abs));
    const reachOf = (rows) => Math.max(...rows.flatMap(ends), 0.01);
    const reaches = [reachOf(gate.filter((row) => !isTime(row))), reachOf(gate.filter(isTime))];
    const rows = gate.map((row) => {
      const value = (number) => (number === null ? "–" : isTime(row) ? duration(number) : points(number));
      const bad = row.says === "falls" || row.says === "not better";
      const reach = reaches[Number(isTime(row))];
      const bound = (share) => (isTime(row) ? change(share) : signed(Math.abs(100 * share).toFixed(2), share));
      const unit = isTime(row) || row.low === null ? "" : " points";
      const drawn = { value: row.change, low: row.low, high: row.high };
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, isTime(row) ? "time to embed a note, less is better" : row.name),
        make("td", {}, value(row.serving)),
        make("td", {}, value(row.new)),
        make("td", {}, `${between(row.low, row.high, bound)}${unit}`),
        make("td", {}, row.of || "–"),
        make("td", { class: bad ? "failed" : null }, row.says),
        make("td", {}, row.low === null ? "" : this.#interval(drawn, -reach, reach)),
      );
    });
    return this.#table(
      `Gate of ${name}`,
      ["On the newest notes", "Serving", "New", "Change, 95% interval", "Of", ""],
      rows,
      "less or more than the serving one",
    );
  }

  // Shared

  #table(label, columns, rows, scale = null) {
    const { make } = this.#kit;
    const head = columns.map((name) => (name ? make("th", { scope: "col" }, name) : make("td", {})));
    if (scale) head.push(make("td", {}, make("span", { class: "hint" }, scale)));
    return make(
      "div",
      { class: "scroll", role: "region", "aria-label": label, tabindex: 0 },
      make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
    );
  }

  /** A dot on its interval; zero is marked if it lies within the scale. The numbers stand beside it. */
  #interval({ value, low, high }, from, to, dashed = false) {
    const { makeSvg } = this.#kit;
    const x = (share) => (4 + ((WIDE - 8) * (Math.min(Math.max(share, from), to) - from)) / (to - from)).toFixed(1);
    const zero = from < 0 ? [makeSvg("line", { x1: x(0), x2: x(0), y1: 0, y2: 16, class: "zero" })] : [];
    const span = { x1: x(low), x2: x(high), y1: 8, y2: 8, class: "interval" };
    return makeSvg(
      "svg",
      { viewBox: `0 0 ${WIDE} 16`, class: `rate${dashed ? " dashed" : ""}`, "aria-hidden": "true" },
      makeSvg("line", { x1: x(from), x2: x(to), y1: 8, y2: 8, class: "scale" }),
      ...zero,
      ...(low === null ? [] : [makeSvg("line", span)]),
      makeSvg("circle", { cx: x(value), cy: 8, r: 3.5 }),
    );
  }
}

const outcomeOf = ({ outcome, begun }) => `${OUTCOMES[outcome] ?? "not over"}, begun ${minute(begun)}`;

/** Where a turn stands, in a sentence. */
function verdictOf({ outcome, why, serving, model, steps }) {
  switch (outcome) {
    case "refused":
      return `Refused before any reader saw it: ${why}. ${serving} goes on serving.`;
    case "shipped":
      return `Shipped: ${model} answers in the place of ${serving}. ${why}`;
    case "taken_back":
      return `Taken back: ${serving} goes on serving. ${why}`;
  }
  const step = steps.find(({ state }) => ["runs", "waits", "failed", "next"].includes(state));
  switch (step?.state) {
    case "runs":
      return `Step ${step.name} runs.`;
    case "waits":
      return `Waits for ${step.says}`;
    case "failed":
      return `Step ${step.name} failed: ${step.says}. The next run of notellm learn tries it again.`;
    default:
      return `Step ${step?.name ?? "data"} comes next, when notellm learn runs again.`;
  }
}

function unseenOf(one, several, found, show) {
  if (!found?.new) return null;
  const more = found.new > found.most.length ? " and others" : "";
  const share = `${points(found.share, 1)} of all that the newest notes carry`;
  return `${found.new} ${found.new === 1 ? one : several}, ${share} (${found.most.map(show).join(", ")}${more})`;
}
