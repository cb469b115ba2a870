// What the hosts offer to extensions' scripts, and a live preview over the gallery.
function gradioApp() { return document; }
const uiLoaded = [], uiUpdated = [];
function onUiLoaded(f) { uiLoaded.push(f); }
function onAfterUiUpdate(f) { uiUpdated.push(f); }
function onUiTabChange() {}
(function () {
    let ready = false;
    new MutationObserver(() => {
        if (!ready && document.querySelector("#txt2img_prompt")) { ready = true; uiLoaded.forEach((f) => f()); }
        if (ready) uiUpdated.forEach((f) => f());
    }).observe(document, { childList: true, subtree: true });
    setInterval(async () => {
        const answer = await fetch("/internal/progress").then((r) => r.json()).catch(() => null);
        if (!answer) return; // busy: the last picture stays
        for (const tab of ["txt2img", "img2img"]) {
            const place = document.querySelector(`#${tab}_gallery_container`);
            if (!place || !place.offsetParent) continue;
            let shown = place.querySelector(".livePreview");
            if (!answer.state.job || !answer.current_image) { if (shown) shown.remove(); continue; }
            if (!shown) {
                shown = document.createElement("div");
                shown.className = "livePreview";
                shown.style.cssText = "position:absolute;inset:0;z-index:900;background:#1b1d22";
                shown.appendChild(new Image()).style.cssText = "width:100%;height:calc(100% - 60px);object-fit:contain";
                place.style.cssText += "position:relative;min-height:240px" /* an empty gallery's, observed */;
                place.appendChild(shown);
            }
            shown.querySelector("img").src = "data:image/jpeg;base64," + answer.current_image;
        }
    }, 250);
})();
