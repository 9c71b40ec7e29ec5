// The recordings of a session: the button that makes one, and the list of those that are there.

const POLL_MS = 1000; // while one is made
const SURE_MS = 4000; // how long "Really?" stands there

const $ = (id) => document.getElementById(id);

function clock(secondsLong) {
  const whole = Math.max(0, Math.floor(secondsLong));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

function size(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(1)} MB`;
  return `${Math.ceil(bytes / 1e3)} kB`;
}

function when(text) {
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" });
}

function part(tag, properties, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

export class RecordingList {
  /** `ask(method, path)` sends a request and gives the answer; `say(kind, text)` tells the person. */
  constructor(session, ask, say) {
    this.path = `/api/sessions/${encodeURIComponent(session)}/recordings`;
    this.ask = ask;
    this.say = say;
    this.current = "";
    this.key = "";
    this.listed = [];
    this.beganMs = 0; // of the one that is made, by this machine's clock
    this.busy = false;
    this.loading = false;
    this.loaded = false; // whether the server gave the list when it was asked last
    $("record").addEventListener("click", () => this.toggle());
    setInterval(() => this.showButton(), 250);
    this.load();
  }

  /** The server's word of which one is being made. */
  told(current) {
    if (this.busy || this.loading) return;
    if (current !== this.current || !this.loaded) {
      this.current = current;
      this.load();
    }
  }

  async toggle() {
    if (this.busy) return;
    this.busy = true;
    $("record").disabled = true;
    try {
      const told = this.current ? await this.ask("POST", `${this.path}/stop`) : await this.ask("POST", this.path);
      this.current = this.current ? "" : told.id;
      this.beganMs = performance.now();
    } catch (error) {
      this.say("error", error.message);
    }
    this.busy = false;
    $("record").disabled = false;
    await this.load();
  }

  async load() {
    clearTimeout(this.timer);
    this.loading = true;
    try {
      const { current, recordings } = await this.ask("GET", this.path);
      $("record").hidden = false;
      this.current = current;
      const made = recordings.find(({ id }) => id === current);
      if (made) this.beganMs = performance.now() - made.seconds * 1000;
      this.show(recordings);
      this.loaded = true;
    } catch {
      this.loaded = false; // the page's own polling tells when the server is gone, and when it is back
    }
    this.loading = false;
    this.showButton();
    if (this.current) this.timer = setTimeout(() => this.load(), POLL_MS);
  }

  showButton() {
    const button = $("record");
    button.dataset.state = this.current ? "on" : "off";
    const text = this.current ? `Stop recording ${clock((performance.now() - this.beganMs) / 1000)}` : "Record";
    const label = this.current ? "Stop recording" : "Record";
    if ($("record-text").textContent !== text) $("record-text").textContent = text;
    if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
  }

  show(recordings) {
    const newest = [...recordings].sort((a, b) => (a.id < b.id ? 1 : -1));
    const key = JSON.stringify(newest.map(({ id, state }) => [id, state]));
    $("recordings").hidden = newest.length === 0;
    if (key !== this.key) {
      this.key = key;
      $("recordings-list").replaceChildren(...newest.map((recording) => this.item(recording)));
    }
    for (const recording of newest) {
      const meta = document.querySelector(`[data-recording="${CSS.escape(recording.id)}"] .recording-meta`);
      const made = recording.state === "recording" ? "being made · " : "";
      const text = `${made}${clock(recording.seconds)} · ${size(recording.bytes)}${recording.text ? ` · ${recording.text}` : ""}`;
      if (meta && meta.textContent !== text) meta.textContent = text;
    }
  }

  item({ id, started, state }) {
    const name = when(started);
    const picture = part("img", { className: "thumbnail", src: `${this.path}/${id}.jpg`, alt: "", loading: "lazy", width: 88, height: 66 });
    picture.addEventListener("error", () => { picture.style.visibility = "hidden"; });
    const words = part(
      "div",
      { className: "recording-words" },
      part("p", { className: "recording-name", textContent: name }),
      part("p", { className: "recording-meta" }),
    );
    const item = part("li", { className: "recording" }, picture, words);
    item.dataset.recording = id;
    item.dataset.state = state;
    if (state === "recording") return item;
    const get = part("a", { className: "button small", href: `${this.path}/${id}.mp4`, download: `mouthpiece-${id}.mp4`, textContent: "Download" });
    get.setAttribute("aria-label", `Download the recording of ${name}`);
    const remove = part("button", { className: "button small quiet", type: "button", textContent: "Delete" });
    remove.setAttribute("aria-label", `Delete the recording of ${name}`);
    remove.addEventListener("click", () => this.remove(id, name, remove));
    item.append(part("div", { className: "recording-acts" }, get, remove));
    return item;
  }

  async remove(id, name, button) {
    if (!button.dataset.sure) {
      button.dataset.sure = "yes";
      button.textContent = "Really?";
      button.setAttribute("aria-label", `Really? Delete the recording of ${name}`);
      setTimeout(() => {
        delete button.dataset.sure;
        button.textContent = "Delete";
        button.setAttribute("aria-label", `Delete the recording of ${name}`);
      }, SURE_MS);
      return;
    }
    try {
      await this.ask("DELETE", `${this.path}/${id}`);
      $("record").focus(); // the button that had the focus goes
      this.say("done", `The recording of ${name} is deleted.`);
    } catch (error) {
      this.say("error", error.message);
    }
    await this.load();
  }
}
