// The explorer's script. Everything that is shown is a function of `data` and of `state`, and `state` lives in the
// address behind "#", so that a link shares a view. Data reaches the page as text nodes and numbers, never as markup.
"use strict";
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(unpacked).json();
  const { pairs, rm } = data;
  const total = pairs.id.length;
  const PAGE = 25;
  const RIGHT = { both_right: "both", only_vrm: "only VRM", only_rm: "only RM", both_wrong: "neither" };
  const START = (data.sets.find((set) => set.kinds) ?? data.sets[0]).name;
  const DEFAULTS = {
    variant: data.vrms[0].name,
    weights: START,
    q: "", set: START, kind: "", right: "disagree", truth: "", leaked: "",
    sort: "vrm", order: "down", page: "1", open: "",
  };
  const COLUMNS = [
    { key: "prompt", title: "Prompt", value: (i) => promptText(i) },
    { key: "set", title: "Set", value: (i) => setOf(i).label },
    { key: "kind", title: "Kind", value: (i) => pairs.kind[i] },
    { key: "rm", title: "RM margin", number: true, value: (i) => rm.margin[i] },
    { key: "vrm", title: "VRM margin", number: true, value: (i) => vrm().margin[i] },
    { key: "right", title: "Who is right", value: (i) => vrm().agreement[i] },
    { key: "leaked", title: "In training", value: (i) => pairs.leaked[i] },
  ];
  const sets = new Map(data.sets.map((set) => [set.name, set]));
  const haystacks = []; // lower-case text of a pair, made when it is first searched
  let state = { ...DEFAULTS };

  // ---- small helpers

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const find = (selector) => document.querySelector(selector);
  const vrm = () => data.vrms.find((model) => model.name === state.variant);
  const setOf = (i) => sets.get(pairs.set[i]);
  const rightOf = (i) => data.agreements[vrm().agreement[i]];
  const keyOf = (i) => `${pairs.set[i]}/${pairs.id[i]}`;
  const words = (name) => name.replaceAll("_", " ");
  const promptText = (i) => data.prompts[pairs.prompt[i]].map((turn) => turn.content).join("\n");
  const excerpt = (text) => (text.length > 110 ? `${text.slice(0, 109).trimEnd()}…` : text);
  const fixed = (value, digits) => value.toFixed(digits).replace("-", "−");
  const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
  const percent = (value) => fixed(100 * value, 1);

  function place(node, left, width) {
    node.style.left = `${100 * left}%`;
    if (width !== undefined) node.style.width = `${100 * width}%`;
    return node;
  }

  function interval([estimate, low, high], show) {
    const ends = low === null ? "" : ` [${show(low)}, ${show(high)}]`;
    return [show(estimate), element("span", { class: "interval" }, ends)];
  }

  // ---- state

  function readState() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...DEFAULTS };
    for (const key of Object.keys(DEFAULTS)) if (given.has(key)) state[key] = given.get(key);
    if (!vrm()) state.variant = DEFAULTS.variant;
    if (!sets.has(state.weights)) state.weights = DEFAULTS.weights;
    if (!COLUMNS.some((column) => column.key === state.sort)) state.sort = DEFAULTS.sort;
  }

  function link(changes) {
    const changed = Object.entries({ ...state, ...changes }).filter(([key, value]) => value !== DEFAULTS[key]);
    return `#${new URLSearchParams(changed)}`;
  }

  function change(changes) {
    const first = "page" in changes || "open" in changes ? {} : { page: "1" };
    const kind = "set" in changes && !("kind" in changes) ? { kind: "" } : {};
    history.replaceState(null, "", link({ ...first, ...kind, ...changes }));
    readState();
    render(changes);
  }

  function sortBy(key) {
    const again = state.sort === key;
    const numeric = COLUMNS.find((column) => column.key === key).number;
    change({ sort: key, order: again ? (state.order === "down" ? "up" : "down") : numeric ? "down" : "up" });
  }

  // ---- which pairs

  function haystack(i) {
    haystacks[i] ??= [promptText(i), data.texts[pairs.chosen[i]], data.texts[pairs.rejected[i]]]
      .join("\n").toLowerCase();
    return haystacks[i];
  }

  function selected() {
    const needles = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const right = (i) => {
      if (state.right === "disagree") return ["only_vrm", "only_rm"].includes(rightOf(i));
      return state.right === "" || state.right === rightOf(i);
    };
    const column = COLUMNS.find(({ key }) => key === state.sort);
    const direction = state.order === "down" ? -1 : 1;
    const compare = (a, b) => (column.number || typeof a === "number" ? a - b : a.localeCompare(b));
    return [...Array(total).keys()]
      .filter((i) => (!state.set || pairs.set[i] === state.set) && (!state.kind || pairs.kind[i] === state.kind))
      .filter((i) => (!state.truth || pairs.truth[i] === state.truth) && right(i))
      .filter((i) => state.leaked === "" || String(pairs.leaked[i]) === state.leaked)
      .filter((i) => needles.every((needle) => haystack(i).includes(needle)))
      .map((i) => [i, column.value(i)])
      .sort(([i, a], [j, b]) => direction * compare(a, b) || i - j)
      .map(([i]) => i);
  }

  // ---- the page's parts

  function fillSelect(name, options) {
    const select = find(`[name=${name}]`);
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = state[name];
  }

  function renderControls() {
    const named = data.sets.map((set) => [set.name, set.label]);
    const inside = pairs.kind.filter((kind, i) => kind && (!state.set || pairs.set[i] === state.set));
    fillSelect("variant", data.vrms.map((model) => [model.name, model.label]));
    fillSelect("weights", named);
    fillSelect("set", [["", "all"], ...named]);
    fillSelect("kind", [["", "all"], ...[...new Set(inside)].sort().map((kind) => [kind, words(kind)])]);
    fillSelect("right", [["", "any"], ["disagree", "RM and VRM disagree"], ...Object.entries(RIGHT)]);
    fillSelect("truth", [["", "any"], ["chosen", "as the known truth"], ["rejected", "against the known truth"]]);
    fillSelect("leaked", [["", "any"], ["0", "no"], ["1", "yes"]]);
    fillSelect("sort", COLUMNS.map((column) => [column.key, column.title]));
    fillSelect("order", [["down", "descending"], ["up", "ascending"]]);
    find("[name=truth]").parentElement.hidden = !pairs.truth.some(Boolean);
    if (find("[name=q]").value !== state.q) find("[name=q]").value = state.q;
  }

  function renderModels() {
    const seeds = data.seeds.length > 1 ? ` of ${data.seeds.length} (${data.seeds.join(", ")})` : "";
    find("#models").textContent =
      `Shown: ${rm.label} against ${data.vrms.length === 1 ? "one VRM" : `${data.vrms.length} VRMs`}, ` +
      `seed ${data.seed}${seeds}, the first one; differences in accuracy are means over all seeds.`;
    const parts = data.sets.map((set) => `${set.shown} of ${set.total} of ${set.label}`);
    const cut = data.sets.some((set) => set.shown < set.total) ? " Prompts were drawn at random." : "";
    find("#shown").textContent = `Pairs in this file: ${parts.join("; ")}.${cut} The counts above are of all pairs.`;
  }

  function renderSummary() {
    const titles = ["Evaluation set", "Pairs", ...Object.values(RIGHT).map((who) => `${who} right`),
      "VRM right where they disagree, %", "Accuracy, VRM − RM, points"];
    const head = element("tr", {}, ...titles.map((title, k) =>
      element("th", { scope: "col", class: k ? "number" : "" }, title)));
    const rows = vrm().summary;
    const bySubset = (rows) => rows.map((row) => summaryRow(row, titles));
    const table = (rows) => element("table", {}, element("thead", {}, head.cloneNode(true)),
      element("tbody", {}, ...bySubset(rows)));
    const level = `${+(100 * data.level).toFixed(1)} %`;
    const alone = rows.filter((row) => !row.subset);
    const subsets = rows.filter((row) => row.subset);
    const wasOpen = find("#summary details")?.open ?? false;
    const details = element("details", wasOpen ? { open: "" } : {},
      element("summary", {}, `The same by kind (${subsets.length})`), table(subsets));
    find("#summary").replaceChildren(
      ...(alone.length ? [table(alone)] : []),
      ...(subsets.length ? [details] : []),
      element("p", { class: "note" },
        "Right is what the set's label says: annotators in one set may err, and one labelled by the known truth does " +
        `not. In brackets: ${level} intervals over prompts, for the difference over seeds and prompts. ` +
        "None where all pairs are alike. Every pair has the same weight. A count leads to its pairs."));
  }

  function summaryRow(row, titles) {
    const set = sets.get(row.evaluation_set);
    const name = row.subset ? `${set.label}: ${words(row.subset)}` : set.label;
    const cell = (k, ...children) =>
      element("td", { class: k < 6 ? "number" : "number full", "data-label": titles[k] }, ...children);
    const counts = data.agreements.map((right, k) => {
      const target = { set: row.evaluation_set, kind: row.subset, right, page: "1", open: "", q: "", truth: "", leaked: "" };
      const jump = (event) => {
        event.preventDefault();
        change(target);
        find("#pairs-title").scrollIntoView();
        find("#pairs-title").focus({ preventScroll: true });
      };
      return cell(2 + k, element("a", { href: link(target), onclick: jump }, row[right]));
    });
    return element("tr", { "data-row": `${row.evaluation_set}/${row.subset}` },
      element("td", {}, name), cell(1, row.pairs), ...counts,
      cell(6, ...(row.vrm_right ? interval(row.vrm_right, percent) : ["—"])),
      cell(7, ...interval(row.difference, (value) => signed(100 * value, 1))));
  }

  function renderWeights() {
    const rows = vrm().weights.filter((row) => row.set === state.weights);
    const values = rows.flatMap((row) => row.values);
    const truthKnown = values.some((value) => value[3] !== null);
    const top = Math.max(...values.flatMap(([, , high, truth]) => [high, truth ?? 0])) * 1.02;
    const [low, high] = data.spread;
    find("#legend").replaceChildren(
      element("span", { class: "sample bar" }), " mean w over prompts, ",
      element("span", { class: "sample spread" }), ` middle ${Math.round(100 * (high - low))} % of prompts`,
      ...(truthKnown ? [", ", element("span", { class: "sample true" }), " mean true weight (second number)"] : []),
      `. All bars have one scale, 0 to ${fixed(top, 2)}.`);
    find("#weights").replaceChildren(...data.aspects.map((aspect, k) =>
      element("div", { class: "card" }, element("h3", {}, aspect),
        ...rows.map((row) => weightRow(row.kind ? words(row.kind) : "all", row.prompts, row.values[k], top)))));
  }

  function weightRow(kind, prompts, [mean, low, high, truth], top) {
    const track = element("div", { class: "track", "aria-hidden": "true" },
      place(element("span", { class: "bar" }), 0, mean / top),
      place(element("span", { class: "spread" }), low / top, (high - low) / top));
    if (truth !== null) track.append(place(element("span", { class: "true" }), truth / top));
    const numbers = element("span", { class: "number" }, fixed(mean, 3));
    if (truth !== null) numbers.append(" ", element("span", { class: "sub" }, fixed(truth, 2)));
    return element("div", { class: "weight", title: `${kind}, ${prompts} prompts` },
      element("span", {}, kind, " ", element("span", { class: "sub" }, `(${prompts})`)), track, numbers);
  }

  function renderHead() {
    find("#pairs thead").replaceChildren(element("tr", {}, ...COLUMNS.map(({ key, title, number }) => {
      const sorted = state.sort === key ? (state.order === "down" ? "descending" : "ascending") : "none";
      const mark = { descending: "\u00a0▾", ascending: "\u00a0▴", none: "" }[sorted];
      return element("th", { scope: "col", "aria-sort": sorted, class: number ? "number" : "" },
        element("button", { type: "button", "data-sort": key, onclick: () => sortBy(key) }, title + mark));
    })));
  }

  function renderPairs() {
    const found = selected();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const opened = state.open ? found.findIndex((i) => keyOf(i) === state.open) : -1;
    const wanted = opened < 0 ? parseInt(state.page, 10) || 1 : Math.floor(opened / PAGE) + 1;
    const page = Math.min(pages, Math.max(1, wanted));
    const from = (page - 1) * PAGE;
    const visible = found.slice(from, from + PAGE);
    find("#status").textContent = found.length
      ? `${from + 1} to ${from + visible.length} of ${found.length} pairs` : "No pair matches; change a filter.";
    find("#pairs tbody").replaceChildren(...visible.flatMap((i) => pairRows(i)));
    const step = (by, text) => {
      const turn = (event) => {
        change({ page: String(page + by), open: "" });
        if (event.detail) find("#pairs-title").scrollIntoView(); // a pointer; a key stays where the focus is
      };
      const button = element("button", { type: "button", "data-step": by, onclick: turn }, text);
      button.disabled = page + by < 1 || page + by > pages;
      return button;
    };
    find("#paging").replaceChildren(step(-1, "Previous"), `Page ${page} of ${pages}`, step(1, "Next"));
  }

  function pairRows(i) {
    const key = keyOf(i);
    const opened = state.open === key;
    const toggle = () => change({ open: opened ? "" : key });
    const open = element("button", { type: "button", class: "open", "aria-expanded": opened, onclick: toggle },
      excerpt(promptText(i)));
    const onRow = (event) => {
      if (!event.target.closest("button") && !String(getSelection())) toggle();
    };
    const cells = [open, setOf(i).label, words(pairs.kind[i]), signed(rm.margin[i], rm.digits),
      signed(vrm().margin[i], vrm().digits), RIGHT[rightOf(i)], pairs.leaked[i] ? "yes" : "no"];
    const row = element("tr", { class: opened ? "pair opened" : "pair", "data-pair": key, onclick: onRow },
      ...cells.map((cell, k) => element("td", {
        class: COLUMNS[k].number ? "number" : "", ...(k ? { "data-label": COLUMNS[k].title } : {}),
      }, cell)));
    return opened ? [row, element("tr", { class: "detail" }, element("td", { colspan: cells.length }, ...detail(i)))] : [row];
  }

  // ---- one pair

  function detail(i) {
    const turns = data.prompts[pairs.prompt[i]];
    const prompt = turns.flatMap((turn) => [
      ...(turns.length > 1 ? [element("div", { class: "sub" }, turn.role)] : []),
      element("p", { class: "text" }, turn.content)]);
    const side = (title, text) => element("div", {}, element("h3", {}, title), element("p", { class: "text" }, text));
    const truth = pairs.truth[i];
    const notes = [
      ...(truth ? [truth === "chosen" ? "By the known truth, too, the chosen response is the better one."
        : "By the known truth the rejected response is the better one: this label is wrong."] : []),
      ...(pairs.leaked[i] ? ["The prompt also occurs in training."] : []),
      ...(pairs.truncated[i] ? ["A text was cut before a model scored it."] : []),
    ];
    return [
      element("p", { class: "sub" }, `${setOf(i).label}, pair ${pairs.id[i]}`),
      element("h3", {}, "Prompt"), ...prompt,
      element("div", { class: "texts" }, side("Chosen", data.texts[pairs.chosen[i]]),
        side("Rejected", data.texts[pairs.rejected[i]])),
      element("ul", { class: "verdicts" }, verdict(rm.label, rm.margin[i], rm.digits, truth),
        verdict(vrm().label, vrm().margin[i], vrm().digits, truth),
        ...(vrm().b ? [verdict(`${vrm().label}, rated aspects alone`, ratedMargin(i), vrm().digits, truth)] : []),
        ...notes.map((note) => element("li", {}, note))),
      ...objectives(i),
    ];
  }

  function verdict(label, margin, digits, truth) {
    const side = margin > 0 ? "prefers the chosen response" : margin < 0 ? "prefers the rejected response" : "is undecided";
    const right = margin > 0 ? "right" : "wrong";
    const byTruth = truth === "rejected" ? ` by the label, ${margin < 0 ? "right" : "wrong"} by the known truth` : "";
    return element("li", {}, element("b", {}, label), ` ${side}, margin ${signed(margin, digits)}: ${right}${byTruth}.`);
  }

  // what the model adds beside the rated aspects, as a row of the table; nothing for a model without a residual
  function residual(i) {
    const model = vrm();
    if (!model.b) return null;
    const [chosen, rejected] = model.b.map((side) => side[i] * model.unit);
    return { chosen, rejected, contribution: chosen - rejected };
  }

  function ratedMargin(i) {
    return vrm().margin[i] - residual(i).contribution;
  }

  function objectives(i) {
    const model = vrm();
    const split = model.chosen !== undefined;
    const numbers = data.aspects.map((_, k) => {
      const w = model.w[k][i] * data.weightUnit;
      if (!split) return { w };
      const [chosen, rejected] = [model.chosen[k][i] * model.unit, model.rejected[k][i] * model.unit];
      return { w, chosen, rejected, contribution: w * (chosen - rejected) };
    });
    const margin = model.margin[i];
    const b = residual(i);
    const rated = b ? ratedMargin(i) : 0;
    const most = Math.max(...[margin, rated, b?.contribution ?? 0, ...numbers.map((row) => row.contribution ?? 0)]
      .map(Math.abs)) || 1;
    const ratings = pairs.ratings[i];
    const truth = pairs.trueWeights[i];
    const show = (value) => fixed(value, model.digits);
    const columns = [
      ["w", (row) => fixed(row.w, 3)],
      ...(truth ? [["true w", (row, k) => fixed(truth[k], 3)]] : []),
      ...(ratings ? [["rated chosen / rejected", (row, k) => `${ratings[0][k]} / ${ratings[1][k]}`]] : []),
      ...(split ? [["g chosen", (row) => show(row.chosen)], ["g rejected", (row) => show(row.rejected)],
        ["contribution", (row) => signed(row.contribution, model.digits)]] : []),
    ];
    const body = numbers.map((row, k) => element("tr", { "data-objective": data.aspects[k] },
      element("th", { scope: "row" }, data.aspects[k]),
      ...columns.map(([title, value]) => element("td", { class: "number", "data-label": title }, value(row, k))),
      ...(split ? [element("td", { class: "full" }, diverging(row.contribution / most))] : [])));
    const sum = (title, value, part) => element("tr", { "data-part": part },
      element("th", { scope: "row", colspan: columns.length }, title),
      element("td", { class: "number" }, signed(value, model.digits)),
      element("td", { class: "full" }, diverging(value / most)));
    const foot = [sum("Sum: the VRM's margin", margin, "whole")];
    if (b) {
      const own = { "g chosen": show(b.chosen), "g rejected": show(b.rejected),
        contribution: signed(b.contribution, model.digits) };
      foot.unshift(sum("Rated aspects", rated, "rated"), element("tr", { "data-part": "residual" },
        element("th", { scope: "row" }, "Residual: beside the rated aspects"),
        ...columns.map(([title]) => element("td", { class: "number", ...(own[title] ? { "data-label": title } : {}) },
          own[title] ?? "")),
        element("td", { class: "full" }, diverging(b.contribution / most, "residual"))));
    }
    const head = ["Objective", ...columns.map(([title]) => title), ...(split ? ["for rejected | for chosen"] : [])];
    const middle = head.length - 1;
    const table = element("table", { class: "objectives" },
      element("thead", {}, element("tr", {}, ...head.map((title, k) =>
        element("th", { scope: "col", class: split && k === middle ? "centre" : k ? "number" : "" }, title)))),
      element("tbody", {}, ...body), ...(split ? [element("tfoot", {}, ...foot)] : []));
    const lacks = "This variant's decoder is an MLP on w and z: its reward is no sum over objectives, so there are no " +
      "contributions to show.";
    const beside = "The residual is what decides beside the rated aspects, good or bad: flattery, and whatever nobody rated.";
    return [table, ...(split ? [] : [element("p", { class: "note" }, lacks)]),
      ...(b ? [element("p", { class: "note" }, beside)] : [])];
  }

  function diverging(share, kind = "") {
    const bar = element("span", { class: `${share > 0 ? "for" : "against"} ${kind}`.trim() });
    return element("div", { class: "diverging", "aria-hidden": "true" },
      place(bar, share > 0 ? 0.5 : 0.5 + share / 2, Math.abs(share) / 2), element("span", { class: "zero" }));
  }

  // ---- start

  function render(changes) {
    const active = document.activeElement;
    const focused = active?.dataset.sort ? `[data-sort=${active.dataset.sort}]`
      : active?.dataset.step ? `[data-step="${active.dataset.step}"]`
        : active?.classList.contains("open") ? `[data-pair="${CSS.escape(active.closest("tr").dataset.pair)}"] .open` : null;
    renderControls();
    if (!changes || "variant" in changes) renderSummary();
    if (!changes || "variant" in changes || "weights" in changes) renderWeights();
    renderHead();
    renderPairs();
    const again = focused && find(focused);
    (again?.disabled ? find("#paging button:enabled") : again)?.focus({ preventScroll: true });
  }

  for (const control of document.querySelectorAll("[name]:not(meta)")) {
    control.addEventListener("input", () => change({ [control.name]: control.value, open: "" }));
  }
  find("#reset").addEventListener("click", () => {
    const { variant, weights, ...rest } = DEFAULTS;
    change(rest);
  });
  addEventListener("hashchange", () => {
    readState();
    render();
  });
  readState();
  renderModels();
  render();
  find("tr.opened")?.scrollIntoView();
  document.documentElement.dataset.ready = "";
})();
