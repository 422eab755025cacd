// Puts what the server sends in place of what stands there, and draws the two plots. Nothing here is needed to read.
"use strict";

(() => {
  const KEPT = 120;
  const main = document.querySelector("main[data-events]");
  const connection = document.getElementById("connection");
  const rates = [];
  const lags = [];
  let before = null;
  let lettersAtFirst = null;
  let source = null;

  const asNumber = (text) => (text === "" || text === undefined ? null : Number(text));

  // The last values at the right; a gap where a value is unknown.
  function draw(name, values, unit) {
    const svg = document.getElementById(`plot-${name}`);
    const known = values.filter((value) => value !== null);
    const top = Math.max(1, ...known);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    let line = "";
    let pen = "M";
    values.forEach((value, index) => {
      if (value === null) {
        pen = "M";
        return;
      }
      const x = 240 - (values.length - 1 - index) * (240 / (KEPT - 1));
      line += `${pen}${x.toFixed(1)} ${(46 - 44 * (value / top)).toFixed(1)}`;
      pen = "L";
    });
    path.setAttribute("d", line);
    svg.replaceChildren(path);
    const most = `max ${shortened(Math.max(...known))}${unit} in 2 min`;
    document.getElementById(`scale-${name}`).textContent = known.length > 1 ? most : "";
  }

  function shortened(value) {
    return value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
  }

  function keep(values, value) {
    values.push(value);
    values.splice(0, values.length - KEPT);
  }

  // Of two status rows; unknown when another process has taken over, or when there is no newer row.
  function rateSince(last, now) {
    if (last === null || now.savedAt <= last.savedAt || now.handled < last.handled) {
      return null;
    }
    return (now.handled - last.handled) / (now.savedAt - last.savedAt);
  }

  function take(data) {
    const now = {
      savedAt: asNumber(data.savedAt),
      handled: asNumber(data.handled),
      lag: data.alive ? asNumber(data.lag) : null,
      letters: asNumber(data.deadLettered),
    };
    if (lettersAtFirst === null) {
      lettersAtFirst = now.letters;
    }
    document.getElementById("changed").hidden = now.letters === lettersAtFirst;
    if (before !== null && now.savedAt === before.savedAt && data.alive) {
      return;
    }
    keep(rates, rateSince(before, now));
    keep(lags, now.lag);
    before = now;
    draw("rate", rates, "");
    draw("lag", lags, " s");
    const rate = rates.at(-1);
    if (rate !== null || !data.alive) {
      document.getElementById("rate").textContent = rate === null ? "–" : shortened(rate);
    }
  }

  function show(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) {
      const old = document.getElementById(part.id);
      // Only what differs, so that what is selected or read aloud is left alone.
      if (old !== null && old.innerHTML !== part.innerHTML) {
        old.replaceChildren(...part.childNodes);
      }
    }
    const values = fresh.getElementById("values");
    if (values !== null) {
      take(values.dataset);
    }
  }

  function say(text) {
    if (connection.textContent !== text) {
      connection.textContent = text;
    }
  }

  let patience = null;

  function listen() {
    source = new EventSource(main.dataset.events);
    source.onmessage = (message) => {
      clearTimeout(patience);
      patience = null;
      say("live");
      show(message.data);
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) {
        say("not live: load the page again");
        return;
      }
      // A stream ends every few seconds and is opened again; only what lasts is worth saying.
      patience ??= setTimeout(say, 5000, "not live: the web server does not answer");
    };
  }

  take(document.getElementById("values").dataset);
  listen();
  // A page that nobody looks at asks for nothing.
  document.addEventListener("visibilitychange", () => {
    source.close();
    if (!document.hidden) {
      listen();
    }
  });
})();
