// The clock of the player, on the audio thread: plays sound that is tagged with media time and tells where it is.
const RATE_HZ = 16_000; // of the sound
const ROOM = 1 << 17; // samples kept, 8 s; a power of two
const TAPS = 32;
const HALF = TAPS / 2;
const PHASES = 256;
const REPORT_QUANTA = 6; // 16 ms at 48 kHz
const RAMP_S = 0.003; // sound comes in over this time after a gap
const DECAY_S = 0.001; // and what was cut off dies away over this one

// Windowed sinc (Kaiser, beta 8): one row of taps for each fraction of a sample, and one more to interpolate to.
function kernel(cutoff) {
  const bessel = (x) => {
    let sum = 1;
    for (let k = 1, term = 1; k < 32; k += 1) {
      term *= (x / (2 * k)) ** 2;
      sum += term;
    }
    return sum;
  };
  const table = new Float32Array((PHASES + 1) * TAPS);
  for (let phase = 0; phase <= PHASES; phase += 1) {
    const row = table.subarray(phase * TAPS, (phase + 1) * TAPS);
    let sum = 0;
    for (let tap = 0; tap < TAPS; tap += 1) {
      const x = tap - (HALF - 1) - phase / PHASES;
      const angle = Math.PI * x * cutoff;
      const edge = x / HALF;
      const window = edge * edge < 1 ? bessel(8 * Math.sqrt(1 - edge * edge)) : 0;
      row[tap] = (angle === 0 ? 1 : Math.sin(angle) / angle) * window;
      sum += row[tap];
    }
    for (let tap = 0; tap < TAPS; tap += 1) row[tap] /= sum;
  }
  return table;
}

class Speaker extends AudioWorkletProcessor {
  constructor() {
    super();
    this.kernel = kernel(0.94 * Math.min(1, sampleRate / RATE_HZ));
    this.ring = new Float32Array(ROOM);
    this.ramp = 1 / (RAMP_S * sampleRate);
    this.decay = Math.exp(-1 / (DECAY_S * sampleRate));
    this.epoch = -1;
    this.end = -1; // media time behind the newest sound; -1: there is none
    this.head = -1; // media time that is played next, with its fraction; -1: silent until it is placed
    this.speed = 1;
    this.place = 0; // number of the last placing, told back
    this.starved = false;
    this.gain = 0;
    this.tail = 0;
    this.last = 0;
    this.quanta = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(told) {
    if (told.kind === "sound") this.write(told.epoch, told.first, new Int16Array(told.pcm));
    else if (told.kind === "cut") this.cut(told.epoch);
    else if (told.kind === "speed") this.speed = told.speed;
    else if (told.kind === "place" && told.epoch === this.epoch) {
      this.breakOff();
      this.head = Math.max(0, told.sample + (currentTime - told.at) * RATE_HZ);
      this.speed = 1;
      this.place = told.place;
      this.starved = false;
      this.report();
    }
  }

  cut(epoch) {
    if (epoch === this.epoch) return;
    this.breakOff();
    this.epoch = epoch;
    this.end = -1;
    this.head = -1;
    this.starved = false;
    this.ring.fill(0);
    this.report();
  }

  write(epoch, first, pcm) {
    if (epoch !== this.epoch) return;
    const from = this.end < 0 ? first : this.end;
    if (first - from >= ROOM) this.ring.fill(0);
    else for (let n = from; n < first; n += 1) this.ring[n & (ROOM - 1)] = 0; // a gap is silence
    for (let n = 0; n < pcm.length; n += 1) this.ring[(first + n) & (ROOM - 1)] = pcm[n] / 32768;
    this.end = Math.max(this.end, first + pcm.length);
  }

  // What comes next does not go on from what was: no click.
  breakOff() {
    this.tail = this.last;
    this.gain = 0;
  }

  at(head) {
    const whole = Math.floor(head);
    const place = (head - whole) * PHASES;
    const phase = Math.floor(place);
    const share = place - phase;
    const row = phase * TAPS;
    let sum = 0;
    for (let tap = 0; tap < TAPS; tap += 1) {
      const weight = this.kernel[row + tap] * (1 - share) + this.kernel[row + TAPS + tap] * share;
      sum += weight * this.ring[(whole + tap - (HALF - 1)) & (ROOM - 1)];
    }
    return sum;
  }

  report() {
    const at = currentTime + 128 / sampleRate;
    const { epoch, head, end, starved, speed, place } = this;
    this.port.postMessage({ epoch, at, head, end, starved, speed, place });
  }

  process(_inputs, [[out]]) {
    const step = (this.speed * RATE_HZ) / sampleRate;
    for (let n = 0; n < out.length; n += 1) {
      let value = 0;
      if (this.head >= 0) {
        if (this.head + HALF < this.end) {
          this.starved = false;
          value = this.gain * this.at(this.head);
          this.gain = Math.min(1, this.gain + this.ramp);
          this.head += step;
        } else if (!this.starved) {
          this.starved = true;
          this.breakOff();
        }
      }
      this.tail *= this.decay;
      this.last = value + this.tail;
      out[n] = this.last;
    }
    this.quanta += 1;
    if (this.quanta % REPORT_QUANTA === 0) this.report();
    return true;
  }
}

registerProcessor("mouthpiece-speaker", Speaker);
