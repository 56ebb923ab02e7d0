// Replaces parts of the page by what the server renders, and lets keys do what buttons and links do.
// Without it, the same forms and links work by whole pages.
"use strict";

const POLL_MS = 5000;
const SHORTCUTS_OFF = "libra-console-shortcuts-off";
let busy = false;

async function fetchPart(address, body) {
  const response = await fetch(address, {
    method: body ? "POST" : "GET",
    body,
    headers: { "X-Console-Fragment": "1" },
    redirect: "error",
  });
  if (response.status === 401) {
    location.assign("/console/login");
    throw new Error("logged out");
  }
  if (!response.headers.get("content-type").startsWith("text/html")) throw new Error("not a page");
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

function put(page, selector) {
  const now = document.querySelector(selector);
  const next = page.querySelector(selector);
  if (!next) {
    // A message takes the whole page: nothing that stood there can be relied on.
    document.body.replaceChildren(...page.body.childNodes);
    return;
  }
  const scrolled = [...now.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
  now.replaceWith(next);
  next.querySelectorAll(".scroll").forEach((part, at) => { part.scrollLeft = scrolled[at] ?? 0; });
  prepare();
}

async function swap(selector, address, body) {
  if (busy) return;
  busy = true;
  try {
    put(await fetchPart(address, body), selector);
    offline(false);
    const said = document.querySelector("[data-said]");
    if (selector === "#review") {
      document.getElementById("said").textContent = said ? said.firstChild.textContent.trim() : "";
      document.getElementById("review")?.focus({ preventScroll: true });
    }
  } catch {
    offline(true);
  } finally {
    busy = false;
  }
}

async function poll() {
  if (document.hidden || busy) return;
  for (const part of document.querySelectorAll("[data-poll]")) {
    try {
      const page = await fetchPart(part.dataset.poll);
      if (busy || !part.isConnected) return;
      put(page, "#" + part.id);
      offline(false);
    } catch {
      offline(true);
      return;
    }
  }
}

function offline(is) {
  const notice = document.getElementById("offline");
  if (notice) notice.hidden = !is;
}

function prepare() {
  const shortcuts = document.getElementById("shortcuts");
  if (!shortcuts) return;
  shortcuts.parentElement.hidden = false;
  shortcuts.checked = !localStorage.getItem(SHORTCUTS_OFF);
}

document.addEventListener("submit", (event) => {
  const target = event.target.dataset.swap;
  if (!target) return;
  event.preventDefault();
  swap(target, event.target.action, new FormData(event.target, event.submitter));
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-swap]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  swap(link.dataset.swap, link.href);
});

document.addEventListener("change", (event) => {
  if (event.target.id !== "shortcuts") return;
  if (event.target.checked) localStorage.removeItem(SHORTCUTS_OFF);
  else localStorage.setItem(SHORTCUTS_OFF, "1");
});

function toggleText() {
  const text = document.querySelector("#review .user-text");
  if (text) text.open = !text.open;
}

const KEYS = {
  s: () => document.querySelector(".decide button.safe")?.click(),
  u: () => document.querySelector(".decide button.unsafe")?.click(),
  v: toggleText,
  j: () => document.getElementById("following")?.click(),
  k: () => document.getElementById("previous")?.click(),
  z: () => document.getElementById("change")?.click(),
  n: () => document.getElementById("note")?.focus(),
};

document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input:not([type=checkbox]), textarea");
  if (event.key === "Escape" && event.target.id === "note") {
    document.getElementById("review").focus();
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (!act || writing || event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (localStorage.getItem(SHORTCUTS_OFF)) return;
  event.preventDefault();
  act();
});

prepare();
setInterval(poll, POLL_MS);
