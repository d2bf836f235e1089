// Both videos begin together and begin again together; arrow keys answer; nobody answers twice by a double click.
const videos = [...document.querySelectorAll("video")];
const buttons = [...document.querySelectorAll(".pair button")];
const form = document.querySelector(".pair");

function fromTheStart() {
  for (const video of videos) { video.currentTime = 0; video.play().catch(() => {}); }
}

for (const video of videos) {
  video.loop = false;
  video.addEventListener("ended", () => { if (videos.every((each) => each.ended)) fromTheStart(); });
  video.addEventListener("canplaythrough", () => { if (videos.every((each) => each.readyState >= 4)) fromTheStart(); }, { once: true });
}
document.getElementById("again").addEventListener("click", fromTheStart);
document.addEventListener("keydown", (event) => {
  const side = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
  if (side !== undefined && !event.repeat) buttons[side].click();
});
form.addEventListener("submit", () => setTimeout(() => buttons.forEach((button) => { button.disabled = true; })));
