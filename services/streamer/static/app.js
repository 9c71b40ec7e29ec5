// The page asks for the whole state twice a second and shows it; what a person does is sent at once.
import { Microphone, whyNone } from "./microphone.js";
import { Player } from "./player.js";
import { RecordingList } from "./recordings.js";

const POLL_MS = 500;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const ANSWER_MS = 10_000; // longest wait for an answer
const SEND_MS = 130_000; // longest wait while a file goes over the line: a little more than the server takes
const MAX_PHOTO_BYTES = 10 * 1024 * 1024;
const MAX_SOUND_BYTES = 200 * 1024 * 1024;
const MAX_SOUND_S = 600;
const SAMPLE_RATE_HZ = 16_000;
const FLOOR_DB = -60;
const BACK_TO_IMAGE = 3; // tries of the player that fail before the plain stream is shown
const MOST_UNHEARD = 3; // polls for which the server may not know of this page's microphone
const READ_MS = 5000; // time in which words can be read
const NO_ANSWER = "The server does not answer. Check that it runs, then try again.";
const CHOICE_MS = 600; // so long a voice that was come upon by an arrow key must stay chosen
const MOST_BEHIND = 5; // polls for which the player may not know of the server's time line
const OWN = "browser"; // the source that is this browser's microphone

const $ = (id) => document.getElementById(id);
const root = document.documentElement;
root.classList.add("js");

const session = root.dataset.session;
const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
const picture = $("picture");
const canvas = $("canvas");
const player = new Player(canvas, { session });
const microphone = new Microphone({ session });
window.mouthpiecePlayer = player; // for tests, and for people with the console open
let status = null;
let failures = 0; // polls in a row that got no answer, or were refused
let refusal = ""; // the server's words for why it was
let chosen = null; // source that was chosen here while the server does not know of it yet
let soundWish = null; // whether the person wants sound; null: as is best for the source
let said = null; // what the last action led to: {kind, text, endMs}
let busy = ""; // what is being sent, in words

// ---- words ------------------------------------------------------------------------------------------------------

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // screen readers repeat what is written again
}

function say(kind, text, keptMs = text === NO_ANSWER ? READ_MS : Infinity) {
  said = text ? { kind, text, endMs: performance.now() + keptMs } : null;
  showMessages();
}

// Words that were true when they were said, and are no more, go when they could be read.
function forgetOldWords() {
  const nowMs = performance.now();
  if (said && nowMs > said.endMs) said = null;
  if (microphone.state === "off" && !status.running && nowMs > microphone.saidMs + READ_MS) microphone.text = "";
}

let shownMessages = "";
function showMessages() {
  const messages = [];
  if (said) messages.push({ kind: said.kind, text: said.text });
  for (const text of (status && status.notices) || []) messages.push({ kind: "notice", text });
  const key = JSON.stringify(messages);
  if (key === shownMessages) return;
  shownMessages = key;
  $("messages").replaceChildren(
    ...messages.map(({ kind, text }) => {
      const p = document.createElement("p");
      p.className = `message ${kind}`;
      p.textContent = text;
      return p;
    }),
  );
}

// ---- talking to the server --------------------------------------------------------------------------------------

// The address of something of this session.
function at(path, more = {}) {
  const asked = new URLSearchParams(more);
  if (session !== "default") asked.set("session", session);
  const query = asked.toString(); // its size is not known to browsers before 2023
  return query ? `${path}?${query}` : path;
}

async function send(method, path, { body, limitMs = ANSWER_MS, type } = {}) {
  const headers = { Accept: "application/json" };
  if (type) headers["Content-Type"] = type;
  let answer;
  try {
    answer = await fetch(path, { method, body, headers, cache: "no-store", signal: AbortSignal.timeout(limitMs) });
  } catch (error) {
    if (error.name === "TimeoutError" && limitMs === SEND_MS) {
      throw new Error("Sending took too long. Try a smaller file, or a better line.");
    }
    throw new Error(NO_ANSWER);
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `The server refused this (${answer.status}).`);
  return told;
}

function ask(path, body, limitMs, type) {
  return send("POST", at(path), { body, limitMs, type });
}

async function act(doing) {
  say("", "");
  try {
    const told = await doing();
    if (told && told.services) show(told);
  } catch (error) {
    say("error", error.message);
  } finally {
    busy = "";
    showVeil();
  }
}

// ---- showing the state ------------------------------------------------------------------------------------------

function show(next) {
  status = next;
  const { face } = status;
  forgetOldWords();
  if (chosen === status.source) chosen = null;
  // Whoever looks from elsewhere has no use for a microphone where the server stands.
  const farMic = status.source === "mic" && (!isLocal || !status.sources.some(({ id, available }) => id === "mic" && available));
  if (!told && !status.running && farMic && !whyNone()) chosen = OWN;
  told = true;
  showPill();
  showTransport();
  if (status.width && status.height) {
    picture.width = status.width;
    picture.height = status.height;
    player.resize(status.width, status.height);
  }
  recordings.told(status.recording);
  setText($("face-text"), face.text);
  $("face-text").dataset.state = face.state;
  showFaces(face);
  showSources();
  showServices();
  showMessages();
  showVeil();
}

let told = false; // whether the server told its state once
const source = () => chosen || (status ? status.source : "");
const talking = () => Boolean(status && status.running) || microphone.on;

// One of Start and Stop is there, and the focus stays where it was.
function showTransport() {
  const live = talking();
  const [shown, hidden] = live ? [$("stop"), $("start")] : [$("start"), $("stop")];
  $("stage-side").classList.toggle("live", live);
  $("start").disabled = Boolean(status && status.face.state === "preparing");
  const hadFocus = document.activeElement === hidden;
  shown.hidden = false;
  hidden.hidden = true;
  if (hadFocus) shown.focus();
}

function showPill() {
  const pill = $("pill");
  if (failures) {
    pill.dataset.state = "lost";
    setText($("pill-text"), refusal ? "Not connected" : "Reconnecting…");
  } else if (status) {
    pill.dataset.state = status.running ? "live" : "still";
    const late = status.latency_ms === null ? "" : ` · ${Math.round(status.latency_ms)} ms`;
    setText($("pill-text"), status.running ? `Live · ${Math.round(status.fps)} fps${late}` : "Paused");
  }
}

function showVeil() {
  let text = busy;
  if (!text && microphone.state === "opening") text = microphone.text;
  if (!text) text = refusal;
  if (!text && failures > 1) text = "The server does not answer. Reconnecting…";
  if (!text && status && status.face.state === "preparing") text = status.face.text || "Looking for the face…";
  $("veil").hidden = !text;
  setText($("veil-text"), text);
}

function showFaces({ faces, index }) {
  $("faces").hidden = faces < 2;
  const chips = $("face-chips");
  if (faces < 2) return;
  if (chips.children.length !== faces) {
    chips.replaceChildren(
      ...Array.from({ length: faces }, (_, n) => {
        const chip = document.createElement("button");
        chip.className = "chip";
        chip.name = "index";
        chip.value = String(n);
        chip.textContent = n ? `Face ${n + 1}` : "Largest";
        return chip;
      }),
    );
  }
  [...chips.children].forEach((chip, n) => chip.setAttribute("aria-pressed", String(n === index)));
}

const WORDS = {
  browser: "My microphone",
  mic: "This server’s microphone",
  demo: "Demo speech",
  network: "A sound file",
  file: "The server’s sound file",
};

function showSources() {
  const now = source();
  const noMic = whyNone();
  const radios = document.querySelectorAll("#sources input");
  const known = Object.fromEntries(status.sources.map((choice) => [choice.id, choice]));
  for (const radio of radios) {
    const { value } = radio;
    const able = value === OWN ? !noMic : Boolean(known[value] && known[value].available);
    // Where the server is this machine a microphone of its own that it lacks is no choice at all.
    radio.parentElement.hidden = value === "mic" && isLocal && !able && now !== "mic";
    if (radio.disabled === able) radio.disabled = !able;
    if (radio.checked !== (value === now)) radio.checked = value === now;
  }
  $("sources").dataset.others = String([...radios].filter((radio) => !radio.parentElement.hidden).length - 1);
  $("own").hidden = now !== "network";
  $("own-mic").hidden = now !== OWN;
  $("take-over").hidden = !(status.running && !microphone.on);
  const lateWords = microphone.state === "live" && !player.wanted ? "The sound here is off, so that you do not hear yourself late." : "";
  setText($("source-text"), now === OWN ? lateWords : chosen ? "" : status.source_text);
  setText($("own-hint"), noMic ? "Not on this page; see below" : "You talk here, the face talks");
  showMicrophone();
  const reasons = status.sources.filter(({ id, available, why }) => !available && why && id !== OWN);
  if (noMic) reasons.unshift({ id: OWN, why: noMic });
  const key = JSON.stringify(reasons);
  if ($("why").dataset.key !== key) {
    $("why").dataset.key = key;
    $("why").replaceChildren(
      ...reasons.map(({ id, label, why }) => {
        const item = document.createElement("li");
        const name = document.createElement("strong");
        name.textContent = `${WORDS[id] || label}:`;
        item.append(name, ` ${why}`);
        return item;
      }),
    );
  }
}

function showMicrophone() {
  let text = microphone.text;
  if (!text && microphone.state === "live") text = "You are heard.";
  else if (!text && status && status.running && status.source === OWN) text = "Somebody talks from another page.";
  else if (!text && status && status.running) text = "Press “Talk from here” and talk. The browser asks first whether it may listen.";
  else if (!text) text = "Press Start and talk. The browser asks first whether it may listen.";
  setText($("mic-text"), text);
  $("mic-text").dataset.state = microphone.state;
}

async function showDevices() {
  const devices = await microphone.devices();
  $("device-pick").hidden = devices.length < 2 || !devices[0].id;
  const select = $("device");
  const key = JSON.stringify(devices);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...devices.map(({ id, label }) => new Option(label, id)));
  }
  const used =
    devices.find(({ label }) => label === microphone.label) || devices.find(({ id }) => id === microphone.device) || devices[0];
  if (used && !(microphone.on && document.activeElement === select)) select.value = used.id;
}

function showServices() {
  const list = $("services");
  if (list.children.length !== status.services.length) {
    list.replaceChildren(
      ...status.services.map(() => {
        const item = document.createElement("li");
        item.className = "service";
        for (const name of ["dot", "service-name", "service-state"]) {
          const part = document.createElement("span");
          part.className = name;
          if (name === "dot") part.setAttribute("aria-hidden", "true");
          item.append(part, " ");
        }
        return item;
      }),
    );
  }
  status.services.forEach((service, n) => {
    const item = list.children[n];
    item.dataset.name = service.name;
    item.dataset.state = service.alive ? "ok" : "down";
    const { engine, precision, choice } = service.info || {};
    const error = service.last_error && `last error: ${service.last_error}`;
    item.title = [service.name, choice, service.given_up, error].filter(Boolean).join(" – ");
    setText(item.querySelector(".service-name"), service.words);
    const age = service.age_s >= 1 ? ` for ${Math.round(service.age_s)} s` : "";
    setText(item.querySelector(".service-state"), service.alive ? ["running", engine, precision].filter(Boolean).join(" · ") : `${service.given_up ? "given up" : "not answering"}${age}`);
  });
}

// ---- the level: told twice a second, moved with the screen ------------------------------------------------------

let level = 0; // shown, 0..1
let lastMs = 0;
function share(db) {
  return db === null || db === undefined ? 0 : Math.min(1, Math.max(0, 1 - db / FLOOR_DB));
}
function moveLevel(nowMs) {
  const passedS = Math.min(0.1, (nowMs - lastMs) / 1000);
  lastMs = nowMs;
  const goal = share(loudness());
  const speed = goal > level ? 14 : 4; // up at once, down slowly, as meters do
  level += (goal - level) * Math.min(1, passedS * speed);
  $("meter").style.setProperty("--level", `${(level * 100).toFixed(1)}%`);
  requestAnimationFrame(moveLevel);
}
// What this page's own microphone hears is known here at once.
function loudness() {
  if (microphone.on) return microphone.levelDb;
  return status && !failures ? status.level_db : null;
}
function tellLevel() {
  const db = loudness();
  const meter = $("meter");
  const value = db === null ? FLOOR_DB : Math.round(Math.min(0, Math.max(FLOOR_DB, db)));
  meter.setAttribute("aria-valuenow", String(value));
  meter.setAttribute("aria-valuetext", db === null ? "silent" : `${value} decibels`);
  setText($("level-text"), db === null ? "–" : `${value} dB`);
}

// ---- the picture: from the player, or where there is none a plain stream, which comes back by itself ------------

let pictureTries = 0;
let pictureTimer = 0;
let pictureMs = Date.now(); // when the stream was asked for last
function reloadPicture() {
  clearTimeout(pictureTimer);
  if (picture.hidden) return;
  pictureTimer = setTimeout(() => {
    if (picture.hidden) return;
    pictureMs = Date.now();
    picture.src = at("/video_feed", { t: pictureMs });
  }, RETRY_MS[Math.min(pictureTries, RETRY_MS.length - 1)]);
  pictureTries += 1;
}
picture.addEventListener("error", reloadPicture);
picture.addEventListener("load", () => { pictureTries = 0; });
player.addEventListener("picture", () => {
  picture.hidden = true;
  picture.removeAttribute("src"); // this ends its stream
  canvas.hidden = false;
});
player.addEventListener("state", () => {
  if (player.connected || player.tries <= BACK_TO_IMAGE || !picture.hidden || failures) return;
  canvas.hidden = true;
  picture.hidden = false;
  pictureTries = 0;
  reloadPicture();
});
let hiddenMs = 0;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenMs = Date.now();
  else if (Date.now() - hiddenMs > 20_000) reloadPicture(); // a sleeping tab reads nothing and is cut off
});

// ---- sound: on where it can be, except for those who talk, who would hear themselves late -----------------------

// While it talks, what counts is who does, not who was chosen and may have been refused.
const speaking = () => (status && status.running ? status.source : source());
const soundWanted = () => soundWish ?? !(microphone.on || ["mic", OWN].includes(speaking()));

function applySound() {
  const allowed = navigator.userActivation ? navigator.userActivation.hasBeenActive : true;
  const wanted = soundWanted();
  if (wanted && !player.wanted && allowed) player.setSound(true).catch(soundFailed);
  else if (!wanted && player.wanted) player.setSound(false).catch(soundFailed);
  showSound();
}

function soundFailed() {
  soundWish = false;
  say("error", "This browser cannot play the sound here. The picture goes on without it.");
}

function showSound() {
  const button = $("sound-button");
  button.hidden = !player.connected;
  button.dataset.state = player.sounding ? "on" : soundWanted() ? "blocked" : "off";
  microphone.hearsItself(player.sounding);
  setText($("sound-text"), player.sounding ? "Mute" : "Sound on");
}

$("sound-button").addEventListener("click", () => {
  soundWish = !player.sounding;
  if (soundWish && player.wanted) player.setSound(true).catch(soundFailed); // wanted before, but not allowed
  applySound();
});
for (const kind of ["pointerup", "keyup"]) addEventListener(kind, applySound);
player.addEventListener("sound", showSound);
player.addEventListener("state", showSound);

// Why the server does not want this page any more: its session is gone, or the token is another one.
async function refusalOf(answer) {
  if (answer.status >= 500) return "";
  const told = await answer.json().catch(() => ({}));
  return told.error || `The server refused this (${answer.status}).`;
}

// A microphone that is live here is what the session says; where it is not, its line is dead.
let unheard = 0; // polls in a row
function watchMicrophone() {
  const lost = microphone.state === "live" && !(status.running && status.source === OWN);
  unheard = lost ? unheard + 1 : 0;
  if (unheard <= MOST_UNHEARD) return;
  unheard = 0;
  microphone.again();
}

// A player that was not told of a time line that everybody knows is at the end of a dead line.
let behind = 0; // polls in a row
function watchPlayer() {
  behind = player.connected && status.epoch > player.epoch ? behind + 1 : 0;
  if (behind < MOST_BEHIND) return;
  behind = 0;
  player.reconnect();
}

async function poll() {
  let words = "";
  try {
    const answer = await fetch(at("/api/status"), { cache: "no-store", signal: AbortSignal.timeout(4000) });
    if (!answer.ok) {
      words = await refusalOf(answer);
      throw new Error(String(answer.status));
    }
    const next = await answer.json();
    const wasLost = failures > 0;
    failures = 0;
    refusal = "";
    // A stream that ended cleanly raises no error in the browser; that nobody watches tells it too.
    const unwatched = !picture.hidden && next.viewers === 0 && Date.now() - pictureMs > 5000;
    if (wasLost || unwatched) {
      pictureMs = Date.now();
      reloadPicture();
    }
    show(next);
    applySound();
    watchMicrophone();
    watchPlayer();
  } catch {
    refusal = words;
    if (refusal && microphone.on) microphone.fail(refusal);
    failures += 1;
    showPill();
    showVeil();
  }
  tellLevel();
  setTimeout(poll, failures ? RETRY_MS[Math.min(failures - 1, 2)] : POLL_MS);
}

// ---- what a person does -----------------------------------------------------------------------------------------

function formOf(entries) {
  const form = new FormData();
  for (const [name, value] of Object.entries(entries)) form.append(name, value);
  return form;
}

async function talk() {
  chosen = OWN;
  showTransport();
  await microphone.start();
}

$("transport").addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button.name === "start") {
    if (source() === "network") {
      say("notice", "Choose a sound file first; it starts by itself.");
      return;
    }
    if (source() === OWN) {
      say("", "");
      talk();
      return;
    }
  }
  if (button.name === "clear") chosen = null;
  if (microphone.on) {
    microphone.stop();
    if (button.name === "stop") chosen = OWN;
  }
  act(() => ask("/requests", formOf({ [button.name]: button.value })));
});

$("take-over").addEventListener("click", () => {
  say("", "");
  talk();
});

$("device").addEventListener("change", (event) => {
  if (microphone.on) microphone.start(event.target.value);
  else microphone.device = event.target.value;
});

microphone.addEventListener("change", () => {
  showDevices();
  if (!status) return;
  showTransport();
  showSources();
  showVeil();
  applySound();
});

$("faces").addEventListener("submit", (event) => {
  event.preventDefault();
  act(() => ask("/face", formOf({ index: event.submitter.value })));
});

// Arrow keys choose each voice that they pass: what is passed shall neither open a microphone nor reach the server.
let byArrow = false;
let choiceTimer = 0;
$("source-form").addEventListener("keydown", (event) => { byArrow = event.key.startsWith("Arrow"); });
for (const kind of ["keyup", "pointerdown"]) $("source-form").addEventListener(kind, () => { byArrow = false; });

$("source-form").addEventListener("change", (event) => {
  const { value } = event.target;
  if (value !== source()) soundWish = null; // what was wished was for another voice
  chosen = status && status.source === value ? null : value;
  clearTimeout(choiceTimer);
  if (byArrow) choiceTimer = setTimeout(() => { if (source() === value) useVoice(value); }, CHOICE_MS);
  else useVoice(value);
  if (value === OWN) {
    showDevices();
    if (!byArrow && status && status.running && !microphone.on) talk(); // it talks already: from here on with this voice
  }
  if (status) showSources();
  applySound();
});

function useVoice(value) {
  if (microphone.on && value !== OWN) microphone.stop();
  if (value === OWN || value === "network") return; // the server learns of these when there is sound
  act(async () => {
    try {
      return await ask("/source", formOf({ source: value }));
    } finally {
      if (chosen === value) chosen = null;
    }
  });
}

function upload(file) {
  if (file.size > MAX_PHOTO_BYTES) {
    say("error", "This photo is larger than 10 MB. Make it smaller and try again.");
    return;
  }
  act(async () => {
    busy = "Sending the photo…";
    showVeil();
    await ask("/upload", formOf({ image: file }), SEND_MS);
  });
}

$("photo").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) upload(file);
  event.target.value = ""; // so that the same file can be chosen again
});

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, n) => view.setUint8(at + n, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, SAMPLE_RATE_HZ, true);
  view.setUint32(28, 2 * SAMPLE_RATE_HZ, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let n = 0; n < samples.length; n += 1) {
    view.setInt16(44 + 2 * n, Math.max(-32768, Math.min(32767, Math.round(samples[n] * 32768))), true);
  }
  return view.buffer;
}

async function decode(file) {
  if (file.size > MAX_SOUND_BYTES) throw new Error("This file is larger than 200 MB. Cut it and try again.");
  const decoder = new OfflineAudioContext(1, 1, SAMPLE_RATE_HZ);
  let sound;
  try {
    sound = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`This browser cannot read the sound in “${file.name}”. Save it as WAV, MP3 or Ogg and try again.`);
  }
  if (sound.duration > MAX_SOUND_S) {
    throw new Error(`This sound is ${Math.ceil(sound.duration / 60)} minutes long, the most is 10. Cut it and try again.`);
  }
  // decodeAudioData has brought it to 16 kHz already; the second context mixes the channels to one.
  const mixer = new OfflineAudioContext(1, Math.max(1, Math.ceil(sound.duration * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ);
  const source = mixer.createBufferSource();
  source.buffer = sound;
  source.connect(mixer.destination);
  source.start();
  return (await mixer.startRendering()).getChannelData(0);
}

function speak(file) {
  act(async () => {
    busy = "Reading the sound…";
    showVeil();
    const samples = await decode(file);
    busy = "Sending the sound…";
    showVeil();
    if (microphone.on) microphone.stop();
    const { seconds } = await ask("/speak", wav(samples), SEND_MS, "audio/wav");
    chosen = null;
    say("done", `Speaking “${file.name}” (${Math.round(seconds)} s).`, Math.max(READ_MS, 1000 * seconds));
  });
}

$("sound").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) speak(file);
  event.target.value = "";
});

function take(files) {
  const file = [...files].find((f) => /^(image|audio|video)\//.test(f.type)) || files[0];
  if (!file) return;
  if (/^(audio|video)\//.test(file.type)) speak(file);
  else upload(file); // what is no picture is refused by the server, with words
}

let depth = 0; // dragenter and dragleave come for every element on the way
const carriesFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  depth += 1;
  $("dropping").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  $("dropping").hidden = depth === 0;
});
addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("dropping").hidden = true;
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData && event.clipboardData.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});

const recordings = new RecordingList(session, (method, path) => send(method, path), say);
showDevices();
requestAnimationFrame(moveLevel);
poll();
