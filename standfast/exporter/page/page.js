"use strict";
// Shows /api/v1/status and goes on doing so. Every text of the document goes through text nodes: what
// it holds is never read as markup. When no answer comes, the page says so and fades: what was true a
// minute ago is not what is true.

const EVERY_S = 2, HIDDEN_S = 15, SLOWEST_S = 10, ANSWER_S = 8, STALE_S = 7, ASLEEP_S = 40;
const SIGNS = { ok: "✓", note: "i", warning: "!", unknown: "?", alarm: "✕" };
const WORDS = { ok: "Well", note: "Note", warning: "Warning", unknown: "Unknown", alarm: "Alarm" };
// Without a name and password that may stand in the page's own address: fetch refuses those.
const STATUS = location.origin + new URL("api/v1/status", location.href).pathname;
const byId = (id) => document.getElementById(id);

// --- building -----------------------------------------------------------------------------------

const SVG = new Set(["svg", "path", "line", "rect"]);

function el(tag, attributes, ...children) {
  const made = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) {
      made.append(child instanceof Node ? child : String(child));
    }
  }
  return made;
}

// `commands` between backticks are shown as such.
function prose(text) {
  return String(text).split("`").map((part, number) => (number % 2 ? el("code", {}, part) : part));
}

const known = (level) => (Object.hasOwn(SIGNS, level) ? level : "unknown");
const sign = (level) => el("i", { class: "sign", "aria-hidden": "true" }, SIGNS[known(level)]);

function levelled(level, text) {
  return el("span", { class: `levelled ${known(level)}` }, sign(level),
    el("span", { class: "unseen" }, `${WORDS[known(level)]}: `), el("span", {}, text));
}

// Makes `old` like `made` in place: focus, selection and scrolling stay where they are.
function morph(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) {
    old.replaceWith(made);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!made.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of made.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const now = [...old.childNodes], then = [...made.childNodes];
  then.forEach((child, number) => (number < now.length ? morph(now[number], child) : old.append(child)));
  now.slice(then.length).forEach((child) => child.remove());
}

// --- words --------------------------------------------------------------------------------------

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "never";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

// UTC as everywhere in Standfast's output; the reader's own time is in the tooltip.
function moment(seconds) {
  if (seconds === null || seconds === undefined) return "not known";
  const date = new Date(seconds * 1000);
  const iso = date.toISOString();
  return el("time", { datetime: iso, title: date.toLocaleString() },
    `${iso.slice(0, 10)} ${iso.slice(11, 19)} UTC`);
}

const clock = (date) => date.toTimeString().slice(0, 8);

// --- parts --------------------------------------------------------------------------------------

function headline(volume) {
  const { level, text, advice } = volume.headline;
  return el("div", { class: `headline ${known(level)}` }, sign(level), el("div", {},
    el("p", { class: "word" }, WORDS[known(level)]),
    el("h2", { id: `volume-${volume.volume}` }, prose(text)),
    advice ? el("p", { class: "advice" }, prose(advice)) : null));
}

function notices(volume) {
  // Always there, hidden when empty: what stands below keeps its place in the tree.
  const none = volume.notices.length ? null : "";
  return el("ul", { class: "notices", "aria-label": "Worth a look", hidden: none }, volume.notices.map((one) =>
    el("li", { class: known(one.level) }, sign(one.level), el("div", {},
      el("span", { class: "unseen" }, `${WORDS[known(one.level)]}: `), prose(one.text),
      one.next ? el("div", { class: "next small" }, prose(one.next)) : null))));
}

function card(name, size, ...children) {
  return el("section", { class: `card ${size}`, "aria-label": name }, el("h3", {}, name), children);
}

function facts(...pairs) {
  return el("dl", {}, pairs.filter(Boolean).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function lease(volume) {
  const found = volume.lease;
  if (!found && !volume.sources.consul.ok) return "not known";
  if (!found) return volume.serving ? el("span", { class: "soft" }, `known on ${volume.serving} only`) : "none";
  const part = Math.max(0, Math.min(1, found.remaining_s / found.length_s));
  return [`${found.remaining_s.toFixed(1)} s of ${duration(found.length_s)} left`,
    el("div", { class: part < 0.25 ? "meter low" : "meter", "aria-hidden": "true" },
      el("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none" },
        el("rect", { width: (part * 100).toFixed(1), height: 6 })))];
}

function fence(volume) {
  const found = volume.fence;
  if (!found) return el("span", { class: "soft" }, "not known: no agent answers here");
  if (!found.in_place) return levelled("alarm", "rules missing");
  if (found.open_for_s === null) return levelled("alarm", "port open without end, by hand");
  return levelled("ok", found.open_for_s > 0
    ? `armed, port open for ${found.open_for_s.toFixed(1)} s` : "armed, port shut");
}

function primary(volume) {
  return card("Primary", "third", facts(
    ["Serves", el("strong", {}, volume.serving || (volume.sources.consul.ok && volume.headline.level !== "unknown" ? "nobody" : "not known"))],
    volume.holder && !volume.serving ? ["Last holder", volume.holder] : null,
    ["Epoch", volume.epoch ?? "not known"],
    ["Since", moment(volume.since)],
    volume.began_by ? ["Began by", el("span", {}, volume.began_by, volume.lost_s === null ? ", loss not known" : `, lost ${duration(volume.lost_s)}`)] : null,
    ["Heartbeat", volume.last_heartbeat_seen_s === null ? "not known" : `seen ${duration(volume.last_heartbeat_seen_s)} ago`],
    ["Lease", lease(volume)],
    [`Fence on ${volume.node}`, fence(volume)]));
}

function failover(volume) {
  const { possible, reason, sentence, next } = volume.failover;
  const answer = possible === null ? levelled("unknown", "not known")
    : possible ? levelled("ok", "yes, by itself")
      : levelled(volume.mode === "manual" ? "note" : "warning", volume.mode === "manual" ? "by hand only" : "no");
  return card("Can we fail over now?", "third", facts(
    ["Answer", answer],
    ["Why", el("span", {}, prose(sentence), reason ? el("span", { class: "soft" }, ` [${reason}]`) : null)],
    next ? ["Next step", el("span", {}, prose(next))] : null,
    ["Allowed loss", duration(volume.limits.max_data_loss_s)]));
}

function here(volume) {
  const says = volume.decision;
  return card(`This node, ${volume.node}`, "third", facts(
    ["Role", volume.role],
    says ? ["Says", el("span", {}, prose(says.sentence), el("span", { class: "soft" }, ` [${says.reason}]`))] : null,
    volume.busy ? ["Doing", el("span", {}, prose(volume.busy))] : null,
    ["Kept aside", volume.kept_aside === null ? "not known" : volume.kept_aside.length ? volume.kept_aside.map((path) => el("div", {}, path)) : "nothing"],
    Object.entries(volume.sources).some(([, one]) => !one.ok) ? ["Not readable",
      Object.entries(volume.sources).filter(([, one]) => !one.ok).map(([name]) => name).join(", ")] : null));
}

function plot(standby, limits) {
  const { step_s: step, ages_s: ages } = standby.trend;
  const seen = ages.filter((age) => age !== null);
  if (seen.length < 2) return el("p", { class: "soft small" }, "The plot begins when the exporter has run for a minute.");
  const count = Math.round(3600 / step), width = 240, height = 56, highest = Math.max(...seen);
  const top = 1.15 * Math.max(highest, Math.min(limits.interval_s, highest * 3), 1);
  const x = (number) => ((number + count - ages.length) / (count - 1)) * width;
  const y = (age) => height - 1 - (Math.min(age, top) / top) * (height - 3);
  let curve = "", area = "", first = null;
  ages.forEach((age, number) => {
    if (age === null) { first = null; return; }
    const point = `${x(number).toFixed(1)} ${y(age).toFixed(1)}`;
    if (first === null) { first = x(number).toFixed(1); curve += `M${point}`; area += `M${first} ${height}L${point}`; }
    else { curve += `L${point}`; area += `L${point}`; }
    if (number === ages.length - 1 || ages[number + 1] === null) area += `L${x(number).toFixed(1)} ${height}Z`;
  });
  const limit = limits.max_data_loss_s;
  const span = Math.round((ages.length * step) / 60);
  const text = `Age in the last ${span} min: between ${duration(Math.min(...seen))} and ${duration(highest)}`;
  return [el("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": text },
    el("line", { class: "base", x1: 0, x2: width, y1: height - .5, y2: height - .5 }),
    el("path", { class: "area", d: area }), el("path", { class: "curve", d: curve }),
    limit < top ? el("line", { class: "limit", x1: 0, x2: width, y1: y(limit), y2: y(limit) }) : null),
  el("p", { class: "ends" }, el("span", {}, "1 h ago"), el("span", {}, `highest ${duration(highest)}`), el("span", {}, "now"))];
}

function readiness(one) {
  if (one.age_s === null) return "not ready";
  if (one.on_hold) return "on hold";
  if (!one.candidate) return "no candidate";
  if (one.word && !one.word.takes_over) return "not ready";
  return { ok: "ready", warning: "behind" }[one.level] || "too old";
}

function standby(one, volume) {
  const done = one.replication;
  return el("li", {}, el("div", { class: "name" }, el("span", {}, one.node),
    levelled(one.level, readiness(one))),
  el("div", { class: "age" }, one.age_s === null ? (one.snapshot ? "unknown age" : "no snapshot") : duration(one.age_s),
    one.age_s === null ? null : el("span", { class: "soft small" }, " would be lost")),
  plot(one, volume.limits),
  el("p", { class: "soft small" }, one.snapshot || "nothing was received yet"),
  done && done.last_success_at !== null ? el("p", { class: "soft small" },
    `last cycle ${done.duration_s.toFixed(1)} s, ${bytes(done.sent_bytes)}`,
    done.verified_at === null ? "" : done.verified_ok ? ", compared: equal" : ", compared: DIFFERENT") : null);
}

function standbys(volume) {
  const found = volume.standbys;
  const content = found === null ? el("p", { class: "soft" }, "not known")
    : found.length ? el("ul", { class: "standbys" }, found.map((one) => standby(one, volume)))
      : el("p", { class: "soft" }, "none is configured: nobody could take over");
  return card("Standbys", "", content);
}

function table(names, rows) {
  return el("table", {}, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, number) =>
      el("td", { "data-name": names[number] }, el("span", {}, cell)))))));
}

function clients(volume, at) {
  const found = volume.clients, size = volume.nomad ? "half" : "";
  const content = found === null ? el("p", { class: "soft" }, "not known")
    : !found.length ? el("p", { class: "soft" }, "No client has said what it mounts.")
      : table(["Client", "Mounts from", "State", "Said"], found.map((one) => [
        one.node, one.server === null ? "nothing" : one.epoch === null ? one.server : `${one.server} (epoch ${one.epoch})`,
        levelled(one.level, one.level === "unknown" ? `silent; was ${one.state}` : one.state),
        `${duration(Math.max(0, at - one.at))} ago`]));
  return card("Clients", size, content);
}

function nomad(volume) {
  const found = volume.nomad;
  if (!found) return el("section", { hidden: "" });
  const jobs = found.jobs || [];
  return card("Nomad", "half", el("p", {}, levelled(found.failed.length ? "warning" : found.settled ? "ok" : "note", found.reason)),
    el("p", {}, prose(found.sentence)),
    jobs.length ? table(["Job", "From", "To", "Down"], jobs.map((job) => [job.job, job.source || "-", job.target || "nowhere yet",
      job.down_s === null ? job.why || "still" : `${job.down_s.toFixed(1)} s`])) : null);
}

function history(volume) {
  const found = volume.history;
  if (found === null) return card("History", "", el("p", { class: "soft" }, "not known"));
  if (!found.length) return card("History", "", el("p", { class: "soft" }, "There has been no primary yet."));
  return card("History", "", table(["Epoch", "From", "Primary", "Lost", "By", "Why"], found.map((one) => [
    one.epoch, moment(one.at), one.node,
    one.lost_s === null ? "not known" : one.lost_s === 0 ? "nothing" : duration(one.lost_s),
    one.operator || "itself", one.reason])));
}

function section(volume, at) {
  return el("section", { class: "volume", "aria-labelledby": `volume-${volume.volume}`, "data-level": known(volume.level) },
    headline(volume), notices(volume),
    el("div", { class: "cards" }, primary(volume), failover(volume), here(volume), standbys(volume),
      clients(volume, at), nomad(volume), history(volume)));
}

// --- keeping it true ----------------------------------------------------------------------------

const page = { answeredAt: null, answeredClock: null, failures: 0, why: "", told: "", title: "Standfast", timer: 0, asking: false };

function show(doc) {
  const made = el("main", { id: "main" }, doc.volumes.length
    ? doc.volumes.map((volume) => section(volume, doc.at))
    : el("p", { class: "banner" }, "No volume is configured on this node."));
  morph(byId("main"), made);
  page.title = doc.volumes.map((one) => `${SIGNS[known(one.headline.level)]} ${one.serving || (one.headline.level === "alarm" ? "NOBODY" : "?")} · ${one.volume}`).join(" | ") || "Standfast";
  // For screen readers: only what changes in kind is said, not each second of an age.
  const told = doc.volumes.map((one) => `${one.volume} ${one.serving} ${one.headline.level}`).join();
  if (told !== page.told) {
    byId("announce").textContent = doc.volumes.map((one) => one.headline.text).join(" ");
    page.told = told;
  }
}

function age() {
  const silent = page.answeredAt === null ? null : (performance.now() - page.answeredAt) / 1000;
  // Without a failure it may be that nothing was asked: the computer slept.
  const stale = silent === null ? page.failures > 0 : silent > (page.failures > 0 ? STALE_S : ASLEEP_S);
  byId("updated").textContent = silent === null ? "no answer yet" : `last update ${duration(silent)} ago`;
  document.documentElement.classList.toggle("stale", stale);
  const banner = byId("stale");
  if (stale) {
    const text = (silent === null ? "No answer yet" : `No answer since ${page.answeredClock}: what you see may be wrong by now`)
      + ` (${page.why}). Ask another storage node's page, or run \`standfast status\`.`;
    const made = el("div", { id: "stale", class: "banner", role: "alert" }, prose(text));
    if (banner.hidden || banner.textContent !== made.textContent) morph(banner, made);
    // A green sign must not outlive what it says.
    document.querySelectorAll(".headline > .sign").forEach((one) => { one.textContent = SIGNS.unknown; });
    document.querySelectorAll(".headline .word").forEach((one) => { one.textContent = `Was so at ${page.answeredClock}`; });
  } else if (!banner.hidden) {
    banner.hidden = true;
  }
  document.title = stale ? `? no answer · ${page.title}` : page.title;
}

async function poll() {
  if (page.asking) return;
  page.asking = true;
  clearTimeout(page.timer);
  const control = new AbortController();
  const limit = setTimeout(() => control.abort(), ANSWER_S * 1000);
  try {
    const answer = await fetch(STATUS, { cache: "no-store", signal: control.signal });
    if (!answer.ok) throw new Error(`the exporter answers ${answer.status}`);
    const doc = await answer.json();
    show(doc);
    page.answeredAt = performance.now();
    page.answeredClock = clock(new Date());
    page.failures = 0;
  } catch (error) {
    page.failures += 1;
    page.why = error.name === "AbortError" ? `no answer within ${ANSWER_S} s`
      : error instanceof TypeError && /fetch/i.test(error.message) ? "the exporter can't be reached" : error.message;
  } finally {
    clearTimeout(limit);
    page.asking = false;
  }
  age();
  // Hidden pages ask seldom; a dead exporter is not asked ever faster by many pages.
  const wait = document.hidden ? HIDDEN_S : Math.min(SLOWEST_S, EVERY_S * 2 ** Math.max(0, page.failures - 1));
  page.timer = setTimeout(poll, wait * 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
setInterval(age, 1000);
poll();
