// How the page shows what the API says. Every value is put in as text, never as markup.
"use strict";
const show = (() => {
  const YEAR_DAYS = 365;
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

  function streak(days, hasBegun) {
    put("[data-streak]", number.format(days));
    put("[data-streak-unit]", days === 1 ? "day" : "days");
    put("[data-streak-hint]", days ? "" : `Log ${hasBegun ? "an" : "a first"} activity to start one.`);
  }

  // Without a past there is neither a name nor a day.
  function profile({ streak: days, longest, xp, joined_on: joined }) {
    streak(days, Boolean(joined));
    put("[data-longest]", number.format(longest));
    put("[data-xp]", number.format(xp));
    put("[data-joined]", joined ? asShortDay.format(new Date(joined)) : "–");
  }

  function week({ categories, bonus, multiplier }) {
    let done = 0;
    for (const line of document.querySelectorAll(".categories li")) {
      const isDone = Boolean(categories[line.dataset.category]);
      done += isDone;
      line.classList.toggle("done", isDone);
      line.querySelector(".state").textContent = isDone ? "done" : "to do";
    }
    find("#week progress").value = done;
    const left = 4 - done;
    find("[data-bonus]").classList.toggle("on", bonus);
    put("[data-bonus]", bonus
      ? `Bonus: everything earns ${multiplier} times the XP this week.`
      : `${counted(left, "category", "categories")} to go for half as much XP again.`);
  }

  function freezes({ held, max, reason, can_apply: canApply, next_at_streak: nextAt }) {
    find(".slots").replaceChildren(...Array.from({ length: max }, (_, slot) =>
      element("i", "", { className: slot < held ? "full" : "" })));
    put("[data-held]", `${held} of ${max} held`);
    put("[data-next-freeze]", held >= max ? "You hold as many as you may."
      : `The next one comes with day ${number.format(nextAt)} of your streak.`);
    byId("apply-freeze").disabled = !canApply;
    // What a press of the button said stays.
    const said = byId("freeze-said");
    if (!said.classList.contains("own")) said.textContent = WHY_NO_FREEZE[reason] ?? "";
  }

  function calendar(year) {
    const done = new Map(year.days.map((day) => [day.day, day]));
    const last = Date.parse(year.to);
    const first = Date.parse(year.from);
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
    days.ariaLabel = `Something was done on ${counted(year.active_days, "day")} of the last ${counted(YEAR_DAYS, "day")}`;
    if (isFirst) find(".year").scrollLeft = find(".year").scrollWidth;
    put("[data-active]", year.active_days ? `${counted(year.active_days, "active day")}` : "No active day yet.");
    find("#calendar details").hidden = !year.active_days;
    find("#calendar tbody").replaceChildren(...year.days.slice(-LISTED_DAYS).reverse().map((day) =>
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

  function leaderboard(board) {
    const lines = board.map((standing, index) => {
      const line = row(`${index + 1}.`, standing.name, number.format(standing.streak), number.format(standing.xp));
      line.dataset.name = standing.name;
      return line;
    });
    find("#leaderboard tbody").replaceChildren(...lines);
    find("#leaderboard table").hidden = !lines.length;
    find("[data-nobody]").hidden = Boolean(lines.length);
    me(sessionStorage.getItem("streak.name"));
  }

  function me(name) {
    for (const line of document.querySelectorAll("#leaderboard tbody tr")) {
      const isMe = line.dataset.name === name;
      line.classList.toggle("me", isMe);
      if (isMe) line.cells[1].textContent = `${name} (you)`;
    }
  }

  return { byId, counted, streak, profile, week, freezes, calendar, leaderboard, me };
})();
