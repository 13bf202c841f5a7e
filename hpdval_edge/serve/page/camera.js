// The camera: opened on demand, closed as soon as a picture is taken.

const video = document.getElementById("video");
const open = document.getElementById("camera");
const take = document.getElementById("take");
const close = document.getElementById("close-camera");
let stream = null;

// `started`, `taken` with a File, `stopped` and `failed` with a sentence are called as it goes.
export function setUpCamera({ started, taken, stopped, failed }) {
  if (!navigator.mediaDevices) {
    open.disabled = true;
    open.title = "Browsers open the camera only for https and for this machine's own pages.";
    return;
  }
  open.addEventListener("click", async () => {
    open.disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
      video.srcObject = stream;
      await video.play();
      show(true);
      started();
      take.focus();
    } catch (error) {
      stopCamera();
      failed(sentence(error));
    } finally {
      open.disabled = false;
    }
  });
  take.addEventListener("click", async () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    stopCamera();
    open.focus();
    taken(new File([blob], "camera.jpg", { type: "image/jpeg" }));
  });
  close.addEventListener("click", () => {
    stopCamera();
    open.focus();
    stopped();
  });
}

export function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  show(false);
}

function show(running) {
  for (const element of [video, take, close]) element.hidden = !running;
  open.hidden = running;
}

function sentence(error) {
  if (error.name === "NotAllowedError") return "The camera was not allowed; the browser's site settings can allow it.";
  if (error.name === "NotFoundError") return "This device has no camera.";
  return `The camera cannot be opened (${error.message || error.name}).`;
}
