// Browsers give an audio thread only to pages that came over HTTPS or from the same machine. For the others the same
// speaker runs here, between the page's other work; it needs more sound in stock, which the player sees by itself.

const BLOCK = 1024; // 21 ms at 48 kHz
const QUANTUM = 128; // as on the audio thread

/** A node with the `port` of an AudioWorkletNode that runs speaker.js. */
export async function plainSpeaker(context) {
  const { port1, port2 } = new MessageChannel();
  let now = context.currentTime;
  let Speaker = null;
  // What a module finds around it on the audio thread.
  Object.defineProperties(globalThis, {
    sampleRate: { value: context.sampleRate, configurable: true },
    currentTime: { get: () => now, configurable: true },
    AudioWorkletProcessor: { value: class { port = port2; }, configurable: true },
    registerProcessor: { value: (_name, kind) => { Speaker = kind; }, configurable: true },
  });
  await import("./speaker.js");
  const speaker = new Speaker();
  const node = context.createScriptProcessor(BLOCK, 0, 1);
  node.port = port1;
  node.onaudioprocess = ({ playbackTime, outputBuffer }) => {
    const out = outputBuffer.getChannelData(0);
    now = playbackTime;
    for (let at = 0; at < out.length; at += QUANTUM) {
      speaker.process([], [[out.subarray(at, at + QUANTUM)]]);
      now = playbackTime + (at + QUANTUM) / context.sampleRate;
    }
  };
  return node;
}
