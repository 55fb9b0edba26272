// What the page does: signs in, asks for each section when it comes into view, logs activities and applies freezes.
// The token never leaves this tab but in a header. show.js has how the answers look.
"use strict";
(() => {
  const { byId, counted } = show;
  const REFRESH_AFTER_MS = 1000;
  const FIRST_RETRY_S = 5;
  const MAX_RETRY_S = 60;
  const YEAR_DAYS = 365;
  const BOARD_SIZE = 10;
  const DAY_MS = 86_400_000;
  const DAY_STARTS_MS = 4 * 3_600_000;
  const LOOK_AT_DAY_EVERY_MS = 20_000;
  const NOBODY = { streak: 0, longest: 0, xp: 0 };

  // Asking --------------------------------------------------------------------------------------------------------

  class Problem extends Error {
    constructor(detail, { trace = "", status = 0, retryAfterS = 0 } = {}) {
      super(detail);
      Object.assign(this, { trace, status, retryAfterS });
    }

    // Nobody answers, too much was asked, or the service failed: it may be well again in a moment.
    get mayPass() { return !this.status || this.status === 429 || this.status >= 500; }

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
    const { status } = answer;
    const detail = document?.detail ?? `the service answered ${status}`;
    if (status === 401 && token) leave(`Sign in again: ${detail}.`);
    const retryAfterS = Number(answer.headers.get("retry-after")) || 0;
    throw new Problem(detail, { trace: document?.trace_id ?? "", status, retryAfterS });
  }

  // Sections ------------------------------------------------------------------------------------------------------

  const sections = new Map();

  class Section {
    constructor(id, get, show) {
      Object.assign(this, { root: byId(id), get, show, inView: false, stale: true, asking: null, failures: 0 });
      sections.set(this.root, this);
    }

    seen(inView) {
      this.inView = inView;
      if (inView && this.stale) this.load();
    }

    async load() {
      clearTimeout(this.retry);
      this.asking?.abort(); // only the last answer counts
      const asking = (this.asking = new AbortController());
      this.stale = false;
      this.root.ariaBusy = "true";
      try {
        this.show(await this.get(asking.signal));
        this.failures = 0;
        this.problem(null);
      } catch (failure) {
        if (asking.signal.aborted) return;
        this.stale = true;
        this.problem(failure);
        if (failure.mayPass) this.retryLater(failure.retryAfterS);
      }
      if (asking === this.asking) this.root.ariaBusy = "false";
    }

    // When the service says, or later each time; not all browsers at once, and none that nobody looks at.
    retryLater(afterS) {
      const waitS = Math.max(afterS, Math.min(MAX_RETRY_S, FIRST_RETRY_S * 2 ** this.failures++));
      this.retry = setTimeout(() => document.hidden || this.seen(this.inView), waitS * (1 + Math.random() / 4) * 1000);
    }

    problem(failure) {
      let shown = this.root.querySelector(".problem");
      if (!failure) {
        // The button goes; whoever was on it goes on from the section's heading.
        const heading = Object.assign(this.root.querySelector("h2"), { tabIndex: -1 });
        if (shown?.contains(document.activeElement)) heading.focus();
        shown?.remove();
        return;
      }
      if (!shown) {
        shown = byId("problem").content.firstElementChild.cloneNode(true);
        shown.querySelector("button").addEventListener("click", () => this.load());
        this.root.append(shown);
      }
      shown.querySelector("p").textContent = failure.message;
      shown.querySelector(".trace").textContent = failure.trace ? `trace ${failure.trace}` : "";
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

  // The day ends at 4:00 UTC, also while the page is open: what was said of it holds no longer.
  const dayNow = () => Math.floor((Date.now() - DAY_STARTS_MS) / DAY_MS);
  let day = dayNow();

  function lookAtDay() {
    if (day === dayNow()) return;
    day = dayNow();
    for (const said of document.querySelectorAll(".said.own")) Object.assign(said, { textContent: "", className: "said" });
    refresh();
  }

  // Before the first activity there is no profile to ask for.
  let begun = false;

  async function getProfile(signal) {
    begun ||= (await ask("/activities?limit=1", { signal })).activities.length > 0;
    return begun ? ask("/profile", { signal }) : NOBODY;
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
      begun = true;
      byId("note").value = "";
      show.streak(logged.streak, begun);
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
      await ask("/freeze", { method: "POST" }).finally(refreshSoon); // refused or not, something has changed
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
    show.me(name);
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

  function showProfile(profile) {
    show.profile(profile);
    if (profile.name) known(profile.name);
  }

  const from = (path) => (signal) => ask(path, { signal });
  new Section("streak", getProfile, showProfile);
  new Section("week", from("/consistency"), show.week);
  new Section("freezes", from("/freeze"), show.freezes);
  new Section("calendar", from(`/calendar?days=${YEAR_DAYS}`), show.calendar);
  new Section("leaderboard", from(`/leaderboard?limit=${BOARD_SIZE}`), show.leaderboard);

  byId("log-form").addEventListener("submit", logActivity);
  byId("sign-in-form").addEventListener("submit", signIn);
  byId("apply-freeze").addEventListener("click", applyFreeze);
  byId("refresh").addEventListener("click", refreshSoon);
  byId("sign-out").addEventListener("click", () => leave());
  addEventListener("online", refreshSoon);
  document.addEventListener("visibilitychange", () => document.hidden || (lookAtDay(), refreshSoon()));
  setInterval(lookAtDay, LOOK_AT_DAY_EVERY_MS);

  if (token) {
    enter();
  } else {
    document.querySelector(isDemo ? ".demo" : ".token").hidden = false;
    byId("sign-in").hidden = false;
    byId("sign-in-said").textContent = sessionStorage.getItem("streak.notice") ?? "";
    sessionStorage.removeItem("streak.notice");
  }
})();
