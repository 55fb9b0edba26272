// Web vitals of a page, sent once as its visitor leaves it: <script src="/performance/vitals.js" defer></script>
// Nothing is stored, no visitor is told from another. data-route="/cart" names the page where its path does not.
(() => {
  "use strict";
  const script = document.currentScript;
  if (!script || !window.PerformanceObserver || !navigator.sendBeacon) return;
  const address = new URL("../api/performance/vitals", script.src);
  const observers = [];
  const observe = (type, each, options) => {
    try {
      const observer = new PerformanceObserver((list) => list.getEntries().forEach(each));
      observer.observe({ type, buffered: true, ...options });
      observers.push([observer, each]);
    } catch {
      // A browser that does not know this type measures the others.
    }
  };

  const [navigation] = performance.getEntriesByType("navigation");
  // A page that was rendered ahead begins for its visitor when it is shown.
  const begun = navigation?.activationStart ?? 0;
  // What is painted after the page was hidden says nothing about it.
  let hidden = document.visibilityState === "hidden" && !document.prerendering ? 0 : Infinity;
  let path, values, shifts, interactions, sent, shown, before;
  const begin = (time) => {
    shown = time;
    // The browser goes on counting where a page comes back.
    before = time && performance.interactionCount;
    path = location.pathname;
    values = {};
    shifts = { sum: 0, worst: 0, first: 0, last: 0 };
    interactions = { slowest: new Map(), lowest: Infinity, highest: 0 };
    sent = false;
  };
  begin(0);
  const since = (time) => Math.max(time - begun, 0);

  if (navigation?.responseStart > 0) values.ttfb = since(navigation.responseStart);
  observe("paint", (entry) => {
    if (entry.name === "first-contentful-paint" && entry.startTime < hidden) values.fcp = since(entry.startTime);
  });
  observe("largest-contentful-paint", (entry) => {
    if (entry.startTime < hidden) values.lcp = since(entry.startTime);
  });
  // The worst session: shifts less than a second apart, within five seconds.
  observe("layout-shift", (entry) => {
    if (entry.hadRecentInput || entry.startTime < shown) return;
    const time = entry.startTime;
    if (time - shifts.last > 1000 || time - shifts.first > 5000) Object.assign(shifts, { sum: 0, first: time });
    shifts.last = time;
    shifts.sum += entry.value;
    shifts.worst = Math.max(shifts.worst, shifts.sum);
  });
  const interaction = (entry) => {
    if (entry.entryType === "first-input") values.fid = Math.max(entry.processingStart - entry.startTime, 0);
    if (!entry.interactionId || entry.startTime < shown) return;
    const { slowest } = interactions;
    interactions.lowest = Math.min(interactions.lowest, entry.interactionId);
    interactions.highest = Math.max(interactions.highest, entry.interactionId);
    slowest.set(entry.interactionId, Math.max(slowest.get(entry.interactionId) ?? 0, entry.duration));
    if (slowest.size > 10) slowest.delete([...slowest].reduce((one, other) => (other[1] < one[1] ? other : one))[0]);
  };
  observe("first-input", interaction);
  observe("event", interaction, { durationThreshold: 40 });

  const send = () => {
    if (sent) return;
    for (const [observer, each] of observers) observer.takeRecords().forEach(each);
    const { slowest, lowest, highest } = interactions;
    if (slowest.size) {
      // The 98th percentile: one of each fifty interactions is left out. Where they are not counted, ids are 7 apart.
      const count = performance.interactionCount - before || (highest - lowest) / 7 + 1;
      const durations = [...slowest.values()].sort((one, other) => other - one);
      values.inp = durations[Math.min(durations.length - 1, Math.floor(count / 50))];
    }
    if ("fcp" in values && PerformanceObserver.supportedEntryTypes.includes("layout-shift")) values.cls = shifts.worst;
    if (!Object.keys(values).length) return;
    sent = true;
    const metrics = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, +value.toFixed(4)]));
    const body = JSON.stringify({ path, route: script.dataset.route, metrics });
    navigator.sendBeacon(address, new Blob([body], { type: "application/json" }));
  };
  document.addEventListener("visibilitychange", (event) => {
    if (document.visibilityState !== "hidden") return;
    hidden = Math.min(hidden, event.timeStamp);
    send();
  });
  addEventListener("pagehide", send);
  // A page that comes back from the browser's memory is another visit, painted two frames later.
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    begin(event.timeStamp);
    requestAnimationFrame(() => {
      requestAnimationFrame(() => {
        values.fcp = values.lcp = Math.max(performance.now() - event.timeStamp, 0);
      });
    });
  });
})();
