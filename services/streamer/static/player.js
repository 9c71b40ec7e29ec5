// Plays a session: the sound on the audio clock, and on a canvas the frame that belongs to what is heard at that moment.
//
// Sound comes before its frame. When a frame comes is noted against its media time; the delay is so that nearly all
// frames (and all the sound) are there when they are due, and no more. The playhead keeps to it by playing up to 1.5 %
// faster or slower; it jumps only after a stall.

const RATE_HZ = 16_000;
const HEADER_BYTES = 24;
const SOUND = 1;
const FRAME = 2;
const RETRY_MS = [250, 500, 1000, 2000, 4000];
const GONE_RETRY_MS = 5000; // the session was deleted: it may be made again
const CODE_GONE = 4404;

const WINDOW_S = 3; // arrivals that are looked at
const WARM_S = 1; // after a beginning or a stall the arrivals say nothing of what is usual
const GUARD_S = 0.004; // kept beyond what is needed
const SOUND_GUARD_S = 0.016; // from the socket to the audio thread
const MARGIN_S = 0.02; // with which a player begins
const MOST_MARGIN_S = 0.4; // pictures that are later than that are not waited for
const MOST_BEND = 0.015; // share that the speed is bent by
const BEND_PER_S = 0.5; // speed for each second off
const JUMP_S = 0.3; // so far off the playhead jumps, at any time
const LOOSE_JUMP_S = 0.05; // and so far after a stall
const LOOSE_S = 1;
const FIRST_LOOSE_S = 3; // the same after the sound was switched on: a page that has just come is slow
const QUIET_JUMP_S = 0.03; // and so far where nobody hears it
const QUIET = 200; // of 32768
const QUIET_PAUSE_S = 0.5; // from one such jump to the next
const SILENCE_S = 0.4; // running and nothing came for so long: a stall
const DEAD_S = 12; // and for so long: another connection is tried
const SLEPT_S = 1; // the timer did not run for so long: the tab slept
const MOST_SLEPT_S = 10; // and for so long, without a message too: the line may be dead
// Firefox (seen with 153 on Linux) asks another process how late its sound comes out, and meanwhile holds a lock that the
// thread of the sound needs: now and then the two wait for each other for good, and the page with them.
const ASKING_HANGS = navigator.userAgent.includes("Firefox/");
const USUAL_LATE_S = 0.03; // from its clock to the ear
const CONTROL_MS = 50;
const REPORT_MS = 1000;
const KEPT_SOUND_S = 2; // for when the sound is switched on
const MOST_DECODES = 4; // at once
const MOST_FRAMES = 24; // decoded and waiting
const SCREEN_S = 0.012; // from drawing to the screen, about
const KEPT_REPORTS = 64;

const seconds = () => performance.now() / 1000;

function percentile(numbers, share) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

// How long after its media time a sample is to be heard: delay = arrival - media time, seconds.
class Pace {
  constructor() {
    this.margin = MARGIN_S;
    this.begin();
  }

  // Another time line, or a stall: what is known of the arrivals is void; how much they scatter stays.
  begin() {
    this.frames = [];
    this.sounds = [];
    this.beganS = seconds();
  }

  note(list, nowS, sample) {
    list.push({ nowS, late: nowS - sample / RATE_HZ });
    while (list[0].nowS < nowS - WINDOW_S) list.shift();
  }

  frame(nowS, sample) {
    this.note(this.frames, nowS, sample);
  }

  sound(nowS, first) {
    this.note(this.sounds, nowS, first);
  }

  // Called at a steady rate.
  adapt() {
    if (seconds() - this.beganS < WARM_S) return;
    const late = this.frames.filter(({ nowS }) => nowS > this.beganS + WARM_S).map((arrival) => arrival.late);
    if (late.length < 8) return;
    const spread = Math.min(MOST_MARGIN_S, percentile(late, 0.95) - Math.min(...late));
    this.margin += (spread - this.margin) * (spread > this.margin ? 0.5 : 0.05);
  }

  // Null as long as no frame came.
  delay(outputS) {
    if (!this.frames.length) return null;
    const frames = Math.min(...this.frames.map((arrival) => arrival.late)) + this.margin + GUARD_S;
    if (!this.sounds.length) return frames;
    const sounds = percentile(this.sounds.map((arrival) => arrival.late), 0.98) + outputS + SOUND_GUARD_S;
    return Math.max(frames, Math.min(sounds, frames + 1));
  }
}

async function speakerOf(context) {
  if (!context.audioWorklet) return (await import("./plain_speaker.js")).plainSpeaker(context);
  await context.audioWorklet.addModule(new URL("speaker.js", import.meta.url));
  return new AudioWorkletNode(context, "mouthpiece-speaker", { numberOfInputs: 0, outputChannelCount: [1] });
}

export class Player extends EventTarget {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{session?: string}} options
   * Events: "state" (connected, running, epoch or source changed), "sound" (heard or not), "picture" (the first one).
   */
  constructor(canvas, { session = "default" } = {}) {
    super();
    this.canvas = canvas;
    this.session = session;
    this.context2d = canvas.getContext("2d", { alpha: false });
    this.context = null; // the AudioContext
    this.output = null; // the node that speaks
    this.wanted = false; // whether sound is wanted
    this.connected = false;
    this.hasPicture = false;
    this.running = false;
    this.source = "";
    this.closeCode = 0;
    this.epoch = -1;
    this.pace = new Pace();
    this.frames = []; // decoded and not drawn, oldest first: {epoch, sample, bitmap}
    this.waiting = null; // newest frame that is not decoded yet
    this.decodes = 0;
    this.pieces = []; // last sound: {epoch, first, pcm}
    this.reports = []; // of the audio thread, oldest first
    this.places = 0; // jumps of the playhead, numbered, so that older reports are known
    this.placedS = 0; // when the last was
    this.placing = -1; // and in which epoch
    this.countedEnd = -1; // where the sound ended at the last underrun
    this.clockOffset = null; // audible context time minus performance time, s
    this.looseUntilS = 0;
    this.lastMessageS = 0;
    this.lastControlS = seconds();
    this.tries = 0;
    this.closed = false;
    this.count = { drawn: 0, dropped: 0, underruns: 0, jumps: 0, reconnects: 0, cuts: 0 };
    this.order = 0; // of frames, as they came
    this.drawnOrder = 0;
    this.drawnSample = -1;
    this.drawnEpoch = -1;
    this.skews = []; // of this second, ms
    this.skew = null; // median of the last second, ms
    this.worstSkew = null;
    this.lateFrames = []; // of this second: decoded to drawn, ms
    this.ownDelay = null;
    this.timers = [setInterval(() => this.control(), CONTROL_MS), setInterval(() => this.tell(), REPORT_MS)];
    this.onVisible = () => this.wake();
    document.addEventListener("visibilitychange", this.onVisible);
    const draw = () => {
      if (this.closed) return;
      this.draw();
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
    this.connect();
  }

  close() {
    this.closed = true;
    this.timers.forEach(clearInterval);
    clearTimeout(this.retry);
    document.removeEventListener("visibilitychange", this.onVisible);
    if (this.socket) this.socket.close(1000);
    if (this.context) this.context.close();
    this.frames.forEach(({ bitmap }) => bitmap.close());
  }

  // ---- the connection ---------------------------------------------------------------------------------------------

  connect() {
    clearTimeout(this.retry);
    const url = new URL("/ws/player", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("session", this.session);
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.openedS = seconds();
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === "string") this.hear(JSON.parse(data));
      else this.receive(data);
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket === this.socket) this.lost(code);
    });
  }

  lost(code) {
    if (this.closed) return;
    this.connected = false;
    this.closeCode = code;
    this.running = false;
    this.hasPicture = false; // the next one is told of again
    if (this.tries === 0) this.count.reconnects += 1;
    const waitMs = code === CODE_GONE ? GONE_RETRY_MS : RETRY_MS[Math.min(this.tries, RETRY_MS.length - 1)];
    this.tries += 1;
    this.retry = setTimeout(() => this.connect(), waitMs * (0.8 + 0.4 * Math.random()));
    this.dispatchEvent(new Event("state"));
  }

  reconnect() {
    const old = this.socket;
    this.socket = null;
    old.close(4000);
    this.lost(1006);
  }

  say(message) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  hear(told) {
    if (told.type === "hello") {
      this.connected = true;
      this.closeCode = 0;
      this.tries = 0;
      this.resize(told.width, told.height);
      this.cut(-1); // the server may be another one, whose clock has just begun
      this.dispatchEvent(new Event("state"));
    } else if (told.type === "state") {
      if (told.epoch > this.epoch) this.cut(told.epoch);
      this.running = told.running;
      this.source = told.source;
      this.lastMessageS = seconds();
      this.dispatchEvent(new Event("state"));
    }
  }

  receive(data) {
    const view = new DataView(data);
    const kind = view.getUint8(0);
    const epoch = Number(view.getBigUint64(8, true));
    const sample = Number(view.getBigUint64(16, true));
    if (epoch < this.epoch) return;
    if (epoch > this.epoch) this.cut(epoch);
    const nowS = seconds();
    if (this.running && nowS - this.lastMessageS > SILENCE_S) this.stalled();
    this.lastMessageS = nowS;
    if (kind === SOUND) this.takeSound(nowS, sample, data.slice(HEADER_BYTES));
    else if (kind === FRAME) this.takeFrame(nowS, sample, new Blob([data.slice(HEADER_BYTES)], { type: "image/jpeg" }));
  }

  // A higher epoch: nothing of the old one is heard or drawn any more.
  cut(epoch) {
    const sample = this.audible();
    if (sample !== null) this.say({ type: "heard", epoch: this.epoch, sample: Math.round(sample) });
    if (this.epoch >= 0) this.count.cuts += 1;
    this.epoch = epoch;
    this.frames.forEach(({ bitmap }) => bitmap.close());
    this.frames = [];
    this.waiting = null;
    this.pieces = [];
    this.reports = [];
    this.pace.begin();
    this.loosen();
    if (this.output) this.output.port.postMessage({ kind: "cut", epoch });
  }

  stalled() {
    const report = this.reports[this.reports.length - 1];
    if (report && report.starved) this.countUnderrun(report);
    this.pace.begin();
    this.loosen();
  }

  loosen(forS = LOOSE_S) {
    this.looseUntilS = Math.max(this.looseUntilS, seconds() + forS);
  }

  wake() {
    if (document.hidden) return;
    this.loosen();
    if (this.waiting) this.decode();
  }

  // ---- sound ------------------------------------------------------------------------------------------------------

  /** Whether the sound can be heard now. */
  get sounding() {
    return this.wanted && this.output !== null && this.context.state === "running";
  }

  /** Sound on or off. A browser may refuse it until the person has touched the page: then `sounding` stays false. */
  async setSound(on) {
    this.wanted = on;
    if (!on) {
      if (this.context) await this.context.suspend();
      this.reports = [];
      this.dispatchEvent(new Event("sound"));
      return;
    }
    if (!this.context) {
      const context = new AudioContext({ latencyHint: "interactive" });
      this.context = context;
      context.addEventListener("statechange", () => this.soundChanged());
      let node;
      try {
        node = await speakerOf(context);
      } catch (error) {
        this.context = null; // so that the next try begins anew
        await context.close();
        throw error;
      }
      node.port.onmessage = ({ data }) => this.takeReport(data);
      node.connect(context.destination);
      this.output = node;
    }
    if (!this.wanted) return; // switched off meanwhile
    // Where the browser does not allow it this promise waits until it does.
    this.context.resume().then(() => this.soundChanged());
    this.soundChanged();
  }

  soundChanged() {
    if (this.sounding) {
      this.reports = [];
      this.clockOffset = null;
      const { port } = this.output;
      port.postMessage({ kind: "cut", epoch: -2 });
      port.postMessage({ kind: "cut", epoch: this.epoch });
      for (const piece of this.pieces) this.post(piece);
      this.loosen(FIRST_LOOSE_S);
    }
    this.dispatchEvent(new Event("sound"));
  }

  post({ epoch, first, pcm }) {
    this.output.port.postMessage({ kind: "sound", epoch, first, pcm });
  }

  takeSound(nowS, first, pcm) {
    this.pace.sound(nowS, first);
    const peak = new Int16Array(pcm).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const piece = { epoch: this.epoch, first, pcm, end: first + pcm.byteLength / 2, quiet: peak < QUIET };
    const before = this.pieces[this.pieces.length - 1];
    this.pieces.push(piece);
    while (this.pieces[0].first < first - KEPT_SOUND_S * RATE_HZ) this.pieces.shift();
    if (!this.sounding) return;
    this.post(piece);
    const report = this.reports[this.reports.length - 1];
    if (report && report.starved && before && report.end === first) this.countUnderrun(report); // no pause of the speaker
    if (!report || report.starved || report.head < 0) this.control();
  }

  countUnderrun({ end }) {
    if (this.countedEnd !== end) this.count.underruns += 1;
    this.countedEnd = end;
  }

  takeReport(report) {
    if (report.epoch !== this.epoch || report.place !== this.places) return;
    if (report.starved) this.loosen();
    this.reports.push(report);
    if (this.reports.length > KEPT_REPORTS) this.reports.shift();
  }

  toldTime(nowS) {
    if (ASKING_HANGS) return this.context.currentTime - USUAL_LATE_S;
    const { contextTime, performanceTime } = this.context.getOutputTimestamp();
    const late = this.context.outputLatency || this.context.baseLatency || 0;
    return performanceTime > 0 ? contextTime + nowS - performanceTime / 1000 : this.context.currentTime - late;
  }

  // Context time of what leaves the loudspeaker now. The browser tells it in steps; they are smoothed.
  audibleTime(nowS) {
    const offset = Math.min(this.toldTime(nowS), this.context.currentTime) - nowS;
    const off = this.clockOffset === null ? Infinity : offset - this.clockOffset;
    this.clockOffset = Math.abs(off) > 0.08 ? offset : this.clockOffset + 0.02 * off;
    return nowS + this.clockOffset;
  }

  // Media time that is heard now, or null when nothing is.
  audible(nowS = seconds()) {
    if (!this.sounding || !this.reports.length) return null;
    const time = this.audibleTime(nowS);
    let n = this.reports.length - 1;
    while (n > 0 && this.reports[n].at > time) n -= 1;
    const report = this.reports[n];
    if (report.head < 0) return null;
    const next = this.reports[n + 1];
    if (report.starved && (!next || next.starved)) return null;
    const sample = report.head + (time - report.at) * RATE_HZ * (report.starved ? 0 : report.speed);
    return next && next.place === report.place ? Math.min(sample, next.head) : Math.min(sample, Math.max(report.end, report.head));
  }

  /** From the playhead to the ear, s. */
  get outputS() {
    return this.sounding ? Math.max(0, this.context.currentTime - this.audibleTime(seconds())) : 0;
  }

  // Keep the playhead where it should be.
  control() {
    const nowS = seconds();
    if (nowS - this.lastControlS > SLEPT_S) this.loosen();
    // The timer of a hidden tab runs once a minute, and its line is well all the same.
    const slept = !document.hidden && nowS - this.lastControlS > MOST_SLEPT_S;
    const silentS = nowS - this.lastMessageS;
    this.lastControlS = nowS;
    if (this.connected && ((slept && silentS > MOST_SLEPT_S) || (this.running && silentS > DEAD_S))) {
      this.reconnect();
      return;
    }
    if (!this.connected && this.socket && this.socket.readyState === WebSocket.CONNECTING && nowS - this.openedS > 10) {
      this.reconnect();
      return;
    }
    this.pace.adapt();
    if (!this.sounding) return;
    const due = this.due(nowS);
    const newest = this.pieces[this.pieces.length - 1];
    if (due === null || !newest) return;
    const report = this.reports[this.reports.length - 1];
    const time = this.audibleTime(nowS);
    if (!report || report.head < 0) {
      if (this.placing !== this.epoch || nowS - this.placedS > 0.2) this.jump(due, time, newest, false);
      return;
    }
    const off = (due + (report.at - time) * RATE_HZ - report.head) / RATE_HZ; // positive: it is behind
    const limit = nowS < this.looseUntilS ? LOOSE_JUMP_S : JUMP_S;
    const goal = report.head + off * RATE_HZ;
    const mayJump = Math.abs(off) > QUIET_JUMP_S && nowS - this.placedS > QUIET_PAUSE_S;
    const unheard = mayJump && this.isQuiet(Math.min(goal, report.head), Math.max(goal, report.head));
    if (Math.abs(off) > limit || unheard) {
      this.jump(due, time, newest, true);
    } else if (!report.starved) {
      const speed = 1 + Math.max(-MOST_BEND, Math.min(MOST_BEND, off * BEND_PER_S));
      this.output.port.postMessage({ kind: "speed", speed });
    }
  }

  // Whether all of a stretch is there and silent.
  isQuiet(from, to) {
    const pieces = this.pieces.filter(({ first, end }) => end > from && first < to + 0.05 * RATE_HZ);
    return pieces.length > 0 && pieces[0].first <= from && pieces.every(({ quiet }) => quiet);
  }

  jump(due, time, newest, counted) {
    const nowS = seconds();
    const head = due + this.outputS * RATE_HZ;
    if (head >= newest.end || nowS - this.placedS < 0.04) return; // nothing there to play, or just done
    this.places += 1;
    this.placing = this.epoch;
    this.placedS = nowS;
    this.reports = [];
    if (counted) this.count.jumps += 1;
    this.output.port.postMessage({ kind: "place", epoch: this.epoch, sample: due, at: time, place: this.places });
  }

  // Media time that should be heard now.
  due(nowS) {
    const delay = this.pace.delay(this.outputS);
    return delay === null ? null : (nowS - delay) * RATE_HZ;
  }

  // ---- the picture ------------------------------------------------------------------------------------------------

  /** The size of the picture, px. */
  resize(width, height) {
    if (!width || !height || (this.canvas.width === width && this.canvas.height === height)) return;
    this.canvas.width = width; // this empties it
    this.canvas.height = height;
    if (this.lastBitmap) this.context2d.drawImage(this.lastBitmap, 0, 0, width, height);
  }

  takeFrame(nowS, sample, blob) {
    if (this.waiting) this.count.dropped += 1;
    this.order += 1; // two pictures may belong to one moment: a face at rest that becomes another one
    this.waiting = { order: this.order, epoch: this.epoch, sample, blob };
    if (!document.hidden) this.decode();
    else if (sample > 0) this.pace.frame(nowS, sample);
  }

  async decode() {
    if (!this.waiting || this.decodes >= MOST_DECODES) return;
    const { order, epoch, sample, blob } = this.waiting;
    this.waiting = null;
    this.decodes += 1;
    let bitmap = null;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      this.count.dropped += 1; // not a whole picture; the next one comes
    }
    this.decodes -= 1;
    if (bitmap) this.ready({ order, epoch, sample, bitmap, readyS: seconds() });
    this.decode();
  }

  ready(frame) {
    const { order, epoch, sample, bitmap, readyS } = frame;
    if (epoch !== this.epoch || order < this.drawnOrder || this.closed) {
      bitmap.close();
      this.count.dropped += 1;
      return;
    }
    if (sample > 0) this.pace.frame(readyS, sample); // at 0 the time line may not run yet
    let at = this.frames.length;
    while (at > 0 && this.frames[at - 1].order > order) at -= 1;
    this.frames.splice(at, 0, frame);
    while (this.frames.length > MOST_FRAMES) this.drop();
    if (!this.sounding || !this.pieces.length) this.draw(); // nothing to wait for
  }

  drop() {
    this.frames.shift().bitmap.close();
    this.count.dropped += 1;
  }

  draw() {
    if (!this.frames.length) return;
    const nowS = seconds();
    let moment = Infinity; // no sound: the newest
    let heard = null;
    if (this.sounding && this.pieces.length) {
      heard = this.audible(nowS);
      const due = this.due(nowS);
      moment = heard ?? due ?? Infinity;
    }
    const until = moment + SCREEN_S * RATE_HZ;
    let frame = null;
    while (this.frames.length && this.frames[0].sample <= until) {
      if (frame) {
        frame.bitmap.close();
        this.count.dropped += 1;
      }
      frame = this.frames.shift();
    }
    if (!frame) return;
    this.paint(frame);
    this.lateFrames.push((nowS - frame.readyS) * 1000);
    if (heard !== null) this.skews.push((heard - frame.sample) / (RATE_HZ / 1000));
  }

  paint({ order, bitmap, epoch, sample }) {
    const { canvas } = this;
    const { width, height } = bitmap;
    const bent = Math.abs(width * canvas.height - height * canvas.width) > 0.02 * width * canvas.height;
    if (bent || width > canvas.width) {
      canvas.width = width;
      canvas.height = height;
    }
    this.context2d.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    if (this.lastBitmap) this.lastBitmap.close();
    this.lastBitmap = bitmap;
    this.drawnOrder = order;
    this.drawnEpoch = epoch;
    this.drawnSample = sample;
    this.count.drawn += 1;
    if (!this.hasPicture) {
      this.hasPicture = true;
      this.dispatchEvent(new Event("picture"));
    }
  }

  // ---- what it says of itself -------------------------------------------------------------------------------------

  tell() {
    this.skew = this.skews.length ? percentile(this.skews, 0.5) : null;
    this.worstSkew = this.skews.length ? this.skews.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a)) : null;
    this.ownDelay = this.lateFrames.length ? percentile(this.lateFrames, 0.95) : null;
    this.skews = [];
    this.lateFrames = [];
    if (this.skew === null) {
      this.say({ type: "here" }); // where nothing comes, only what is sent shows that the line is dead
      return;
    }
    const { epoch, sample, skewMs, drawn, dropped, underruns, bufferedMs } = this.stats();
    this.say({ type: "report", epoch, sample, skew_ms: skewMs, drawn, dropped, underruns, buffered_ms: bufferedMs });
  }

  /** Everything that is measured: for tests, and for people with the console open. */
  stats() {
    const sample = this.audible();
    const report = this.reports[this.reports.length - 1];
    const buffered = report && report.head >= 0 ? Math.max(0, report.end - report.head) / (RATE_HZ / 1000) : 0;
    return {
      connected: this.connected,
      sounding: this.sounding,
      running: this.running,
      epoch: this.epoch,
      sample: sample === null ? null : Math.round(sample),
      drawnEpoch: this.drawnEpoch,
      drawnSample: this.drawnSample,
      skewMs: this.skew,
      worstSkewMs: this.worstSkew,
      bufferedMs: Math.round(buffered),
      marginMs: Math.round(this.pace.margin * 1000),
      pictureWaitMs: this.ownDelay,
      outputMs: Math.round(this.outputS * 1000),
      speed: report ? report.speed : 1,
      ...this.count,
    };
  }
}
