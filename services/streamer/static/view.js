// The bare page for a browser source in OBS: the face fills the window; nothing else.
import { Player } from "./player.js";

const root = document.documentElement;
const canvas = document.getElementById("canvas");
const picture = document.getElementById("picture");
const asked = new URLSearchParams(location.search);

const background = (asked.get("background") || "").replace(/^#/, "");
if (/^[0-9a-f]{3}([0-9a-f]{3})?$/i.test(background)) root.style.setProperty("--background", `#${background}`);

const player = new Player(canvas, { session: root.dataset.session });
window.mouthpiecePlayer = player;
player.addEventListener("picture", () => {
  picture.removeAttribute("src"); // this ends its stream
  picture.hidden = true;
  canvas.hidden = false;
});
if (asked.get("sound") !== "off") {
  player.setSound(true);
  // Where the browser wants a touch first: any will do.
  for (const kind of ["pointerdown", "keydown"]) {
    addEventListener(kind, () => { if (!player.sounding) player.setSound(true); });
  }
}
