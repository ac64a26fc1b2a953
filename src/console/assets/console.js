// Keeps a page up to date: fetches it again and puts its new <main> in place of the old one. Not while the
// tab is hidden, something is selected or being filled in, or the reader has switched it off. Every page
// works without it.
"use strict";

const PERIOD_MS = 5000;
const KEY = "kyc-live-off";

function isOff() {
  try { return sessionStorage.getItem(KEY) === "1"; } catch { return false; }
}

function setOff(off) {
  try { sessionStorage.setItem(KEY, off ? "1" : "0"); } catch { /* it lasts for this page */ }
}

function isBusy() {
  const selection = document.getSelection();
  const main = document.querySelector("main");
  return document.hidden || (selection && !selection.isCollapsed)
    || main.querySelector("form:focus-within, details[open], [data-still]") !== null;
}

function start() {
  const place = document.getElementById("live");
  if (!place || document.querySelector("[data-still]")) return;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.id = "live-switch";
  box.checked = !isOff();
  const label = document.createElement("label");
  label.htmlFor = box.id;
  label.append(box, " keep this page up to date");
  const told = document.createElement("span");
  told.setAttribute("role", "status");
  told.className = "quiet";
  place.append(label, told);
  box.addEventListener("change", () => setOff(!box.checked));

  setInterval(async () => {
    if (!box.checked || isBusy()) return;
    let text;
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
      text = await answer.text();
    } catch {
      told.textContent = " The console did not answer; what is shown may be old.";
      return;
    }
    // What began meanwhile is not disturbed.
    if (!box.checked || isBusy()) return;
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const main = document.querySelector("main");
    const next = fresh.querySelector("main");
    if (!next) return;
    const held = document.activeElement && main.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const changed = bare(main) !== bare(next);
    main.replaceChildren(...next.childNodes);
    if (held) for (const link of main.querySelectorAll("a")) if (link.getAttribute("href") === held) { link.focus(); break; }
    const footer = document.querySelector("footer time");
    const stamp = fresh.querySelector("footer time");
    if (footer && stamp) footer.replaceWith(stamp);
    told.textContent = changed ? " Updated." : "";
  }, PERIOD_MS);
}

// What a page says, without how long ago it was.
function bare(main) {
  const copy = main.cloneNode(true);
  for (const age of copy.querySelectorAll(".quiet")) age.remove();
  return copy.textContent;
}

start();
