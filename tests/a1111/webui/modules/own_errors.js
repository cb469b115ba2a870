// Observed: the first generation raises the same error twice in the host's own bundle, without any extension.
(function () {
    let raised = false;
    setInterval(() => {
        const info = document.querySelector("#html_info_txt2img");
        if (raised || !info || !info.innerText.includes("Steps:")) return;
        raised = true;
        for (let i = 0; i < 2; i++) setTimeout(() => undefined.props);
    }, 50);
})();
