// What the page does: signs in, asks for each section when it comes into view, logs activities and applies freezes.
// Every value is put in as text, never as markup, and the token never leaves this tab but in a header.
"use strict";
(() => {
  const REFRESH_AFTER_MS = 1000;
  const YEAR_DAYS = 365;
  const BOARD_SIZE = 10;
  const LISTED_DAYS = 14;
  // The XP of a day from which on it is shown in the next stronger colour.
  const LEVELS_XP = [1, 30, 60, 100];
  const WHY_NO_FREEZE = {
    no_streak: "There is no streak to keep: log an activity.",
    no_freeze: "Each seventh day of a streak earns one.",
    day_is_held: "Today counts already.",
  };
  const DAY_MS = 86_400_000;

  const byId = (id) => document.getElementById(id);
  const find = (selector) => document.querySelector(selector);
  const put = (selector, text) => { find(selector).textContent = text; };
  const number = new Intl.NumberFormat("en-GB");
  const date = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
  const asMonth = date({ month: "short" });
  const asDay = date({ weekday: "short", day: "numeric", month: "short", year: "numeric" });
  const asShortDay = date({ day: "numeric", month: "short", year: "numeric" });
  const counted = (count, one, many = `${one}s`) => `${number.format(count)} ${count === 1 ? one : many}`;
  const element = (name, text = "", properties = {}) =>
    Object.assign(document.createElement(name), { textContent: text }, properties);

  // Asking --------------------------------------------------------------------------------------------------------

  class Problem extends Error {
    constructor(detail, trace = "", status = 0) {
      super(detail);
      this.trace = trace;
      this.status = status;
    }

    get text() { return this.trace ? `${this.message} (trace ${this.trace})` : this.message; }
  }

  let token = sessionStorage.getItem("streak.token");

  async function ask(path, { body, signal, method = body ? "POST" : "GET" } = {}) {
    const headers = { accept: "application/json" };
    if (token) headers.authorization = `Bearer ${token}`;
    if (body) headers["content-type"] = "application/json";
    let answer;
    try {
      answer = await fetch(`/api${path}`, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
    } catch (failure) {
      if (signal?.aborted) throw failure;
      throw new Problem("The service does not answer. Are you online?");
    }
    const document = await answer.json().catch(() => undefined); // no JSON, or only half of it
    if (answer.ok && document !== undefined) return document;
    const refusal = document ?? {};
    if (answer.status === 401 && token) leave("Sign in again: your token is not taken any more.");
    throw new Problem(refusal.detail ?? `The service answered ${answer.status}.`, refusal.trace_id, answer.status);
  }

  // Sections ------------------------------------------------------------------------------------------------------

  const sections = new Map();

  class Section {
    constructor(id, path, show, showNobody) {
      this.root = byId(id);
      this.path = path;
      this.show = show;
      this.showNobody = showNobody; // what 404 says: there is nothing of this user yet
      this.inView = false;
      this.stale = true;
      this.asking = null;
      sections.set(this.root, this);
    }

    seen(inView) {
      this.inView = inView;
      if (inView && this.stale) this.load();
    }

    async load() {
      this.asking?.abort(); // only the last answer counts
      const asking = (this.asking = new AbortController());
      this.stale = false;
      this.root.ariaBusy = "true";
      try {
        this.show(await ask(this.path, { signal: asking.signal }));
        this.problem(null);
      } catch (failure) {
        if (asking.signal.aborted) return;
        const isNobody = failure.status === 404 && this.showNobody !== undefined;
        if (isNobody) this.showNobody();
        this.stale = !isNobody;
        this.problem(isNobody ? null : failure);
      }
      if (asking === this.asking) this.root.ariaBusy = "false";
    }

    problem(failure) {
      this.root.querySelector(".problem")?.remove();
      if (!failure) return;
      const shown = byId("problem").content.cloneNode(true);
      shown.querySelector("p").textContent = failure.message;
      shown.querySelector(".trace").textContent = failure.trace ? `trace ${failure.trace}` : "";
      shown.querySelector("button").addEventListener("click", () => {
        Object.assign(this.root.querySelector("h2"), { tabIndex: -1 }).focus(); // the button is about to go
        this.load();
      });
      this.root.append(shown);
    }
  }

  function refresh() {
    for (const section of sections.values()) {
      section.stale = true;
      if (section.inView) section.load();
    }
  }

  let waiting;

  function refreshSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, REFRESH_AFTER_MS);
  }

  // What the sections show ----------------------------------------------------------------------------------------

  function showStreak(streak) {
    put("[data-streak]", number.format(streak));
    put("[data-streak-unit]", streak === 1 ? "day" : "days");
    put("[data-streak-hint]", streak ? "" : "Log an activity to start one.");
  }

  function showProfile(profile) {
    showStreak(profile.streak);
    put("[data-longest]", number.format(profile.longest));
    put("[data-xp]", number.format(profile.xp));
    put("[data-joined]", asShortDay.format(new Date(profile.joined_on)));
    known(profile.name);
  }

  const showNewcomer = () =>
    showProfile({ streak: 0, longest: 0, xp: 0, joined_on: Date.now(), name: sessionStorage.getItem("streak.name") ?? "" });

  function showWeek(week) {
    let done = 0;
    for (const line of document.querySelectorAll(".categories li")) {
      const isDone = Boolean(week.categories[line.dataset.category]);
      done += isDone;
      line.classList.toggle("done", isDone);
      line.querySelector(".state").textContent = isDone ? "done" : "to do";
    }
    find("#week progress").value = done;
    const left = 4 - done;
    find("[data-bonus]").classList.toggle("on", week.bonus);
    put("[data-bonus]", week.bonus
      ? `Bonus: everything earns ${week.multiplier} times the XP this week.`
      : `${counted(left, "category", "categories")} to go for half as much XP again.`);
  }

  function showFreezes(freezes) {
    const { held, max, reason } = freezes;
    find(".slots").replaceChildren(...Array.from({ length: max }, (_, slot) =>
      element("i", "", { className: slot < held ? "full" : "" })));
    put("[data-held]", `${held} of ${max} held`);
    put("[data-next-freeze]", held >= max ? "You hold as many as you may."
      : `The next one comes with day ${number.format(freezes.next_at_streak)} of your streak.`);
    byId("apply-freeze").disabled = !freezes.can_apply;
    // What a press of the button said stays.
    const said = byId("freeze-said");
    if (!said.classList.contains("own")) said.textContent = WHY_NO_FREEZE[reason] ?? "";
  }

  function showCalendar(calendar) {
    const done = new Map(calendar.days.map((day) => [day.day, day]));
    const last = Date.parse(calendar.to);
    const first = Date.parse(calendar.from);
    const monday = first - ((new Date(first).getUTCDay() + 6) % 7) * DAY_MS;
    const cells = [];
    for (let week = monday, month = ""; week <= last; week += 7 * DAY_MS) {
      const starts = asMonth.format(week);
      // The first column has its month's name only if the next one is not about to take its place.
      const named = starts !== month && (week > monday || asMonth.format(week + 14 * DAY_MS) === starts);
      cells.push(element("b", named ? starts : ""));
      month = starts;
      for (let at = week; at < week + 7 * DAY_MS; at += DAY_MS) {
        cells.push(at < first || at > last ? element("span") : dayCell(at, done, at === last));
      }
    }
    const days = find(".days");
    const isFirst = !days.hasChildNodes();
    days.replaceChildren(...cells);
    days.ariaLabel = `Something was done on ${counted(calendar.active_days, "day")} of the last ${counted(YEAR_DAYS, "day")}`;
    if (isFirst) find(".year").scrollLeft = find(".year").scrollWidth;
    put("[data-active]", calendar.active_days ? `${counted(calendar.active_days, "active day")}` : "No active day yet.");
    find("#calendar tbody").replaceChildren(...calendar.days.slice(-LISTED_DAYS).reverse().map((day) =>
      row(asDay.format(new Date(day.day)), number.format(day.activities), number.format(day.xp))));
  }

  function dayCell(at, done, isToday) {
    const day = done.get(new Date(at).toISOString().slice(0, 10));
    const told = day ? `${counted(day.activities, "activity", "activities")}, ${number.format(day.xp)} XP` : "nothing";
    const cell = element("i", "", { title: `${asDay.format(at)}: ${told}`, className: isToday ? "today" : "" });
    cell.dataset.level = day ? Math.max(1, LEVELS_XP.filter((least) => day.xp >= least).length) : 0;
    return cell;
  }

  function row(...values) {
    const line = element("tr");
    line.append(...values.map((value) => element("td", value)));
    return line;
  }

  function showLeaderboard(board) {
    const lines = board.map((standing, index) => {
      const line = row(`${index + 1}.`, standing.name, number.format(standing.streak), number.format(standing.xp));
      line.dataset.name = standing.name;
      return line;
    });
    find("#leaderboard tbody").replaceChildren(...lines);
    find("#leaderboard table").hidden = !lines.length;
    find("[data-nobody]").hidden = Boolean(lines.length);
    markMe();
  }

  function markMe() {
    const name = sessionStorage.getItem("streak.name");
    for (const line of document.querySelectorAll("#leaderboard tbody tr")) {
      const isMe = line.dataset.name === name;
      line.classList.toggle("me", isMe);
      if (isMe) line.cells[1].textContent = `${name} (you)`;
    }
  }

  // Forms ---------------------------------------------------------------------------------------------------------

  // One form at a time is sent once, however often its button is pressed.
  async function sending(button, said, send) {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    said.classList.add("own");
    try {
      said.textContent = (await send()) ?? "";
      said.classList.remove("bad");
    } catch (failure) {
      said.textContent = failure.text ?? String(failure);
      said.classList.add("bad");
    } finally {
      button.ariaDisabled = "false";
    }
  }

  // The same key until it is logged: a second try after a lost answer logs nothing twice.
  const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let draft = { key: newKey(), text: "" };

  function logActivity(event) {
    event.preventDefault();
    const form = byId("log-form");
    const category = form.elements.category.value;
    const note = byId("note").value.trim();
    const activity = { category, minutes: Number(byId("minutes").value), ...(note && { note }) };
    const text = JSON.stringify(activity);
    if (text !== draft.text) draft = { key: newKey(), text };
    return sending(form.querySelector("button"), byId("log-said"), async () => {
      const logged = await ask("/activities", { body: { ...activity, client_key: draft.key } });
      draft = { key: newKey(), text: "" };
      byId("note").value = "";
      showStreak(logged.streak);
      refreshSoon();
      return toldOf(logged);
    });
  }

  function toldOf(logged) {
    const bonus = logged.bonus_earned ? " All four of the week are done: bonus!" : "";
    const milestone = logged.milestone ? ` ${counted(logged.milestone, "day")} in a row!` : "";
    return `${counted(logged.xp, "XP", "XP")} earned.${bonus}${milestone}`;
  }

  function applyFreeze() {
    return sending(byId("apply-freeze"), byId("freeze-said"), async () => {
      await ask("/freeze", { method: "POST" });
      refreshSoon();
      return "Today is held by a freeze.";
    });
  }

  // Signing in and out --------------------------------------------------------------------------------------------

  const isDemo = document.documentElement.dataset.demo === "1";

  function signIn(event) {
    event.preventDefault();
    const form = byId("sign-in-form");
    return sending(form.querySelector("button"), byId("sign-in-said"), async () => {
      const given = byId(isDemo ? "demo-name" : "token").value.trim();
      if (!given) throw new Problem(isDemo ? "Give a name." : "Give your token.");
      if (!isDemo && !/^[!-~]+$/.test(given)) throw new Problem("This is no token.");
      token = isDemo ? (await ask("/demo/token", { body: { name: given } })).token : given;
      sessionStorage.setItem("streak.token", token);
      if (isDemo) known(given);
      byId("token").value = "";
      enter();
      byId("main").focus({ preventScroll: true });
    });
  }

  function known(name) {
    sessionStorage.setItem("streak.name", name);
    byId("name").textContent = name;
    markMe();
  }

  function enter() {
    byId("sign-in").hidden = true;
    byId("sections").hidden = false;
    byId("account").hidden = false;
    byId("name").textContent = sessionStorage.getItem("streak.name") ?? "";
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) sections.get(entry.target).seen(entry.isIntersecting);
    });
    for (const root of sections.keys()) observer.observe(root);
  }

  function leave(notice = "") {
    token = null;
    sessionStorage.clear();
    if (notice) sessionStorage.setItem("streak.notice", notice);
    location.reload(); // nothing of one user is left for the next
  }

  new Section("streak", "/profile", showProfile, showNewcomer);
  new Section("week", "/consistency", showWeek);
  new Section("freezes", "/freeze", showFreezes);
  new Section("calendar", `/calendar?days=${YEAR_DAYS}`, showCalendar);
  new Section("leaderboard", `/leaderboard?limit=${BOARD_SIZE}`, showLeaderboard);

  byId("log-form").addEventListener("submit", logActivity);
  byId("sign-in-form").addEventListener("submit", signIn);
  byId("apply-freeze").addEventListener("click", applyFreeze);
  byId("refresh").addEventListener("click", refreshSoon);
  byId("sign-out").addEventListener("click", () => leave());
  document.addEventListener("visibilitychange", () => document.hidden || refreshSoon());

  if (token) {
    enter();
  } else {
    find(isDemo ? ".demo" : ".token").hidden = false;
    byId("sign-in").hidden = false;
    byId("sign-in-said").textContent = sessionStorage.getItem("streak.notice") ?? "";
    sessionStorage.removeItem("streak.notice");
  }
})();
