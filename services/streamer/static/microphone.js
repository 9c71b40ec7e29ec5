// The microphone of the one who looks at the page, sent to /ws/audio as it is heard.

const BEST_RATE_HZ = 16_000;
const MOST_RATE_HZ = 48_000;
const RETRY_MS = [250, 500, 1000, 2000, 4000];
const MOST_WAITING_S = 0.5; // sound that waits in the browser for a slow line; what comes then is not sent
const QUIET_MS = 6000; // so long nothing at all was heard: say so
const QUIET_DB = -75;
const STILL_MS = 3000; // so long no piece came at all, not even of silence
const WATCH_MS = 1000;
const FLOOR_DB = -100;

const LEVEL_FALL_DB = 1.5; // each piece, as level meters do

const WORDS = {
  NotAllowedError:
    "The browser may not use the microphone. Allow it (the small sign beside the address), then try again.",
  SecurityError: "The browser does not allow this page to use the microphone. Its settings for this page say why.",
  NotFoundError: "No microphone was found on this device. Plug one in, then try again.",
  OverconstrainedError: "That microphone is gone. Try again to use another one.",
  NotReadableError: "The microphone cannot be opened: another program holds it. Close that, then try again.",
  AbortError: "The microphone could not be opened. Plug it in again, then try again.",
};

/** Why this page cannot have a microphone at all and what to do; empty when it can. */
export function whyNone() {
  if (!window.isSecureContext) {
    return (
      "Browsers give the microphone only to pages that came over HTTPS, or from the same machine. Either open this " +
      `page on the machine that serves it (http://localhost${location.port ? `:${location.port}` : ""}/), or give the ` +
      "server a certificate (MOUTHPIECE_TLS_CERT and MOUTHPIECE_TLS_KEY) and open it with https://."
    );
  }
  if (!navigator.mediaDevices || !window.AudioWorkletNode) return "This browser cannot send its microphone. Try a newer one.";
  return "";
}

export class Microphone extends EventTarget {
  /**
   * Events: "change" (state, text or devices). States: off, opening (the person is asked, or the line is made), live,
   * waiting (the line was lost and is made again), problem (off, and the text says why).
   */
  constructor({ session = "default" } = {}) {
    super();
    this.session = session;
    this.state = "off";
    this.text = "";
    this.saidMs = 0; // when it was said
    this.device = "";
    this.echoes = false; // whether loudspeakers here play what the microphone hears
    this.label = ""; // of the microphone in use
    this.levelDb = null;
    this.stream = null;
    this.context = null;
    this.socket = null;
    this.ready = false;
    this.tries = 0;
    this.turn = 0; // counts starts and stops: what is under way for an older one is given up
    if (navigator.mediaDevices) {
      navigator.mediaDevices.addEventListener("devicechange", () => this.changed());
    }
  }

  get on() {
    return this.state === "opening" || this.state === "live" || this.state === "waiting";
  }

  /** The microphones; without names until the person has allowed one. */
  async devices() {
    if (whyNone()) return [];
    const all = await navigator.mediaDevices.enumerateDevices();
    return all
      .filter(({ kind, deviceId }) => kind === "audioinput" && deviceId)
      .map(({ deviceId, label }, n) => ({ id: deviceId, label: label || `Microphone ${n + 1}` }));
  }

  /** Open the microphone and send it; from a click or a key. */
  async start(device = this.device) {
    this.release();
    this.device = device;
    const why = whyNone();
    if (why) {
      this.set("problem", why);
      return;
    }
    const turn = this.turn;
    this.set("opening", "Allow the microphone in the browser.");
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        audio: {
          // Both change a voice that needs neither, and take time; the lips come from what is left. The services have a
          // voice gate of their own against noise.
          echoCancellation: this.echoes,
          noiseSuppression: false,
          autoGainControl: true,
          channelCount: 1,
          ...(device ? { deviceId: { exact: device } } : {}),
        },
      });
      if (turn !== this.turn) {
        stream.getTracks().forEach((track) => track.stop());
        return;
      }
      this.stream = stream;
      const [track] = stream.getAudioTracks();
      this.label = track.label;
      track.addEventListener("ended", () => {
        if (turn === this.turn) this.fail("The microphone is gone: it was unplugged, or taken from this page. Plug one in, then try again.");
      });
      track.addEventListener("mute", () => this.say("The microphone is switched off at the device or in the system."));
      track.addEventListener("unmute", () => this.say(""));
      await this.listen(stream, turn);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.name === "OverconstrainedError") this.device = ""; // the next try takes what there is
      this.fail(WORDS[error.name] || `The microphone cannot be used: ${error.message}`);
      return;
    }
    if (turn === this.turn) this.connect();
  }

  /** Tell whether loudspeakers here play the sound; an open microphone is opened anew, with or without its echo. */
  hearsItself(echoes) {
    if (echoes === this.echoes) return;
    this.echoes = echoes;
    if (this.state === "live" || this.state === "waiting") this.start();
  }

  async listen(stream, turn) {
    let context = null;
    let source = null;
    for (const options of [{ sampleRate: BEST_RATE_HZ }, {}, { sampleRate: MOST_RATE_HZ }]) {
      context = new AudioContext({ latencyHint: "interactive", ...options });
      try {
        source = context.createMediaStreamSource(stream);
        if (context.sampleRate <= MOST_RATE_HZ) break;
      } catch {
        source = null; // Firefox: a context of another rate than the device's; the next one has it
      }
      await context.close();
    }
    if (!source || context.state === "closed") throw new Error("it has a rate that this browser cannot bring here.");
    if (turn !== this.turn) {
      await context.close();
      return;
    }
    this.context = context;
    await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    if (turn !== this.turn) return;
    const node = new AudioWorkletNode(context, "mouthpiece-capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      if (turn === this.turn) this.take(data);
    };
    source.connect(node);
    context.addEventListener("statechange", () => {
      // From "interrupted" (a call comes in) it comes back by itself; as long as it does not, watch() says so.
      if (turn === this.turn && context.state === "suspended") context.resume().catch(() => {});
    });
    await context.resume();
    if (turn !== this.turn) return;
    this.loudMs = this.pieceMs = performance.now();
    this.timer = setInterval(() => this.watch(), WATCH_MS);
  }

  connect() {
    const url = new URL("/ws/audio", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("session", this.session);
    const socket = new WebSocket(url);
    this.socket = socket;
    this.ready = false;
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => {
      if (socket !== this.socket) return;
      const { sampleRate } = this.context;
      socket.send(JSON.stringify({ type: "start", live: true, encoding: "pcm16", sample_rate: sampleRate, channels: 1 }));
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.socket || typeof data !== "string") return;
      const told = JSON.parse(data);
      if (told.type === "ready") {
        this.ready = true;
        this.tries = 0;
        this.loudMs = performance.now();
        this.silent = this.still = false;
        this.set("live", "");
      } else if (told.type === "closed" || told.type === "error") {
        this.last = told.text;
      }
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (socket === this.socket) this.lost(code, reason);
    });
  }

  /** The server does not hear what is sent: give the line up and make another one. */
  again() {
    const old = this.socket;
    this.socket = null;
    old.close(1000);
    this.lost(1006, "");
  }

  lost(code, reason) {
    this.ready = false;
    const why = this.last || reason;
    this.last = "";
    if (code === 4409) this.off(why || "Somebody else speaks for this face now.");
    else if (code === 1000) this.off(why);
    else if (code >= 1002 && code <= 1010 && code !== 1005 && code !== 1006) this.fail(why || "The server refused the sound.");
    else if (code === 4404) this.fail(why || "This session was deleted.");
    else {
      this.set("waiting", "The line to the server was lost. Connecting again…");
      const waitMs = RETRY_MS[Math.min(this.tries, RETRY_MS.length - 1)];
      this.tries += 1;
      this.retry = setTimeout(() => this.connect(), waitMs);
    }
  }

  // Pieces come at a steady rate, in silence too.
  watch() {
    if (this.state !== "live" || this.still || performance.now() - this.pieceMs < STILL_MS) return;
    this.still = true;
    this.say("The microphone gives no sound.");
  }

  take({ pcm, power }) {
    const db = Math.max(FLOOR_DB, 10 * Math.log10(power + 1e-10));
    this.levelDb = this.levelDb === null ? db : Math.max(db, this.levelDb - LEVEL_FALL_DB);
    const nowMs = performance.now();
    this.pieceMs = nowMs;
    if (this.still) this.say("");
    this.still = false;
    if (db > QUIET_DB) {
      this.loudMs = nowMs;
      if (this.silent) this.say("");
      this.silent = false;
    } else if (this.state === "live" && nowMs - this.loudMs > QUIET_MS && !this.silent) {
      this.silent = true;
      this.say("Nothing is heard. Is the right microphone chosen, and is it switched on?");
    }
    if (!this.ready) return;
    if (this.socket.bufferedAmount <= 2 * MOST_WAITING_S * this.context.sampleRate) this.socket.send(pcm);
  }

  /** Close everything; the browser's sign that it listens goes out. */
  stop() {
    this.release();
    this.set("off", "");
  }

  fail(text) {
    this.release();
    this.set("problem", text);
  }

  off(text) {
    this.release();
    this.set("off", text);
  }

  release() {
    this.turn += 1;
    clearTimeout(this.retry);
    clearInterval(this.timer);
    if (this.stream) this.stream.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
    if (this.socket) this.socket.close(1000);
    this.stream = null;
    this.context = null;
    this.socket = null;
    this.ready = false;
    this.tries = 0;
    this.silent = false;
    this.still = false;
    this.levelDb = null;
    this.label = "";
  }

  set(state, text) {
    this.state = state;
    this.say(text);
  }

  say(text) {
    this.text = text;
    this.saidMs = performance.now();
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}
