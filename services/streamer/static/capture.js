// The microphone on the audio thread: pieces of 10 to 20 ms as PCM16, and how loud each is.
const PIECE_S = 0.01;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(128 * Math.ceil((PIECE_S * sampleRate) / 128));
    this.filled = 0;
    this.power = 0;
  }

  process([[sound]]) {
    // Without an input (the microphone is just going) there is nothing to send.
    for (const value of sound || []) {
      const bounded = Math.max(-1, Math.min(1, value));
      this.piece[this.filled] = Math.round(bounded * 32767);
      this.power += bounded * bounded;
      this.filled += 1;
      if (this.filled === this.piece.length) this.send();
    }
    return true;
  }

  send() {
    const pcm = this.piece.slice().buffer;
    this.port.postMessage({ pcm, power: this.power / this.filled }, [pcm]);
    this.filled = 0;
    this.power = 0;
  }
}

registerProcessor("mouthpiece-capture", Capture);
