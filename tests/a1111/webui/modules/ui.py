"""txt2img, img2img, PNG Info, extensions' tabs, settings: the element ids are those of the real hosts."""

import html

import gradio as gr
from modules import infotext_utils, script_callbacks, scripts, shared
from modules.api import queue_lock
from modules.processing import StableDiffusionProcessing, process_images

LAST = {"text": ""}  # of the last picture: what the paste arrow takes when the prompt is empty


def made(runner, component, elem_id):
    """What the host does after each component: scripts may put theirs beside it."""
    runner.after_component(component, elem_id=elem_id)
    return component


def generate(runner, tab):
    def run(prompt, negative, steps, scale, size, count, batch, seed, hires, image, mask, *script_args):
        with queue_lock:
            p = StableDiffusionProcessing(
                prompt, negative, steps, scale, size, size, count, batch, seed, enable_hr=bool(hires),
                init_images=[image] if image is not None else [], mask=mask,
                script_args=[None, *script_args], runner=runner,
            )  # fmt: skip
            shared.state.begin("task")
            try:
                processed = process_images(p)
            finally:
                shared.state.end()
        LAST["text"] = processed.info
        comments = "<br>".join(html.escape(line) for line in processed.comments.split("\n"))
        text = html.escape(processed.info).replace("\n", "<br>")
        return processed.images, f"<p>{text}</p>", f"<p class='comments'>{comments}</p>", processed.js()

    return run


def paste(runner, fields):
    """The paste arrow: an infotext in the prompt box (or that of the last picture) into the widgets."""

    def run(prompt):
        text = prompt if "\nSteps:" in prompt else LAST["text"]
        found = infotext_utils.parse_generation_parameters(text)
        script_callbacks.call("infotext_pasted", text, found)
        updates = []
        for component, target in [*fields, *runner.infotext_fields]:
            value = target(found) if callable(target) else found.get(target)
            if value is None:
                updates.append(gr.update())
                continue
            kind = type(component.value)
            updates.append(gr.update(value=value if kind is type(None) else kind(value)))
        return updates

    return run


def build_tab(tab, runner):
    with gr.Row():
        prompt = made(runner, gr.Textbox(label="Prompt", lines=3, elem_id=f"{tab}_prompt"), f"{tab}_prompt")
        with gr.Column(scale=1):
            submit = gr.Button("Generate", variant="primary", elem_id=f"{tab}_generate")
            with gr.Row():
                arrow = gr.Button("Paste", elem_id="paste" if tab == "txt2img" else f"paste_{tab}")
                interrupt = gr.Button("Interrupt", elem_id=f"{tab}_interrupt")
                skip = gr.Button("Skip", elem_id=f"{tab}_skip")
    negative = gr.Textbox(label="Negative prompt", lines=1, elem_id=f"{tab}_neg_prompt")
    with gr.Row(equal_height=False):
        with gr.Column():
            image = mask = None
            if tab == "img2img":
                image = gr.Image(type="pil", label="Image", elem_id="img2img_image")
                mask = gr.Image(type="pil", label="Mask", elem_id="img2img_mask")
            with gr.Row():
                steps = gr.Slider(1, 60, value=20, step=1, label="Steps", elem_id=f"{tab}_steps")
                scale = gr.Slider(1, 12, value=2.0, step=0.5, label="CFG scale", elem_id=f"{tab}_cfg_scale")
                size = gr.Slider(64, 256, value=128, step=64, label="Size", elem_id=f"{tab}_width")
            with gr.Row():
                count = gr.Slider(1, 8, value=1, step=1, label="Batch count", elem_id=f"{tab}_batch_count")
                batch = gr.Slider(1, 8, value=1, step=1, label="Batch size", elem_id=f"{tab}_batch_size")
                seed = gr.Number(-1, label="Seed", precision=0, elem_id=f"{tab}_seed")
                shown = tab == "txt2img"
                hires = gr.Checkbox(False, label="Hires. fix", elem_id=f"{tab}_hires", visible=shown)
            controls = runner.setup_ui()
        with gr.Column(elem_id=f"{tab}_results"):
            with gr.Group(elem_id=f"{tab}_gallery_container"):
                gallery = gr.Gallery(label="Output", elem_id=f"{tab}_gallery", columns=4)
            info = made(runner, gr.HTML(elem_id=f"html_info_{tab}"), f"html_info_{tab}")
            log = made(runner, gr.HTML(elem_id=f"html_log_{tab}"), f"html_log_{tab}")
            name = f"generation_info_{tab}"
            information = made(runner, gr.Textbox(visible=False, elem_id=name), name)
    nothing = gr.State(None)
    inputs = [prompt, negative, steps, scale, size, count, batch, seed, hires]
    inputs += [image or nothing, mask or nothing]
    submit.click(generate(runner, tab), [*inputs, *controls], [gallery, info, log, information])
    interrupt.click(shared.state.interrupt, [], [], queue=False)
    skip.click(shared.state.skip, [], [], queue=False)
    fields = [(prompt, "Prompt"), (negative, "Negative prompt"), (steps, "Steps"), (seed, "Seed")]
    targets = [component for component, _ in [*fields, *runner.infotext_fields]]
    arrow.click(paste(runner, fields), [prompt], targets, queue=False)


def settings_page():
    components = {}
    for key, info in shared.opts.data_labels.items():
        component = info.component or gr.Checkbox
        value = shared.opts.data[key]
        arguments = dict(info.component_args or {})
        components[key] = component(value=value, label=info.label, elem_id=f"setting_{key}", **arguments)
        gr.HTML(f"<small>{html.escape(info.comment_after)}</small>")
    button = gr.Button("Apply settings", elem_id="settings_submit")

    def apply(*values):
        shared.opts.data.update(zip(components, values))

    button.click(apply, list(components.values()), [], queue=False)


def create_ui():
    script_callbacks.call("before_ui")
    script_callbacks.call("ui_settings")
    scripts.make_runners()
    tabs = [tab for found in script_callbacks.call("ui_tabs") if found for tab in found]
    with gr.Blocks(title="stand-in", analytics_enabled=False) as demo, gr.Tabs(elem_id="tabs"):
        for tab, runner in (("txt2img", scripts.scripts_txt2img), ("img2img", scripts.scripts_img2img)):
            with gr.TabItem(tab, elem_id=f"tab_{tab}"):
                build_tab(tab, runner)
        for blocks, title, elem_id in tabs:
            with gr.TabItem(title, elem_id=f"tab_{elem_id}"):
                blocks.render()
        with gr.TabItem("Settings", elem_id="tab_settings"):
            settings_page()
    return demo
