// Fair Adapter: while a picture is being made, the shares so far as a small strip over the host's own preview,
// unless the settings draw the bars into that preview.
(function () {
    "use strict";
    const PERIOD = 500; // ms between two questions to the server
    let asking = false;
    let refused = false; // a server with --api-auth answers pages with 401: the bars in the preview remain

    function preview() {
        const found = gradioApp().querySelectorAll(".livePreview");
        return [...found].find((element) => element.offsetParent !== null) || null;
    }

    function add(parent, tag, text, style) {
        const element = document.createElement(tag);
        if (text) element.textContent = text;
        if (style) Object.assign(element.style, style);
        parent.appendChild(element);
        return element;
    }

    function draw(place, live) {
        let box = place.querySelector(".fair-live");
        if (!box) {
            box = document.createElement("div");
            box.className = "fair-live";
            place.appendChild(box);
        }
        box.replaceChildren();
        box.classList.toggle("fair-unsure", !live.reliable);
        const faces = live.pictures.filter((faces) => faces.length).length;
        const state = live.reliable ? "" : " (too early to tell)";
        add(box, "div", `step ${live.step} of ${live.total}${state}`);
        add(box, "div", `${faces} of ${live.pictures.length} with a face`);
        if (!faces) return;
        for (const [attribute, rows] of Object.entries(live.shares)) {
            const words = rows.map((row) => `${row.label} ${Math.round(100 * row.share)}%`);
            add(box, "div", `${attribute}: ${words.join(", ")}`);
            const strip = add(box, "div");
            strip.className = "fair-strip";
            for (const row of rows) add(strip, "i", "", { width: `${100 * row.share}%`, background: row.colour });
        }
    }

    async function look() {
        const place = preview();
        if (!place || asking || refused) return;
        asking = true;
        try {
            const answer = await fetch("./fair-adapter/live");
            refused = answer.status === 401;
            const live = answer.ok ? await answer.json() : { active: false };
            if (live.active && live.pictures && !live.drawn && place.isConnected) draw(place, live);
        } catch (error) {
            console.debug("Fair Adapter: no answer from the server", error);
        } finally {
            asking = false;
        }
    }

    onUiLoaded(() => setInterval(look, PERIOD));
})();
