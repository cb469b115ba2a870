"""txt2img, img2img, PNG Info, extensions' tabs, settings: the element ids are those of the real hosts."""

import html

import gradio as gr
from modules import infotext_utils, paths, script_callbacks, scripts, shared
from modules.api import queue_lock
from modules.processing import StableDiffusionProcessing, process_images

LAST = {"text": "", "image": None}  # the last picture: what the paste arrow takes when the prompt is empty
SENT = ("Prompt", "Negative prompt", "Steps", "Seed")  # labels that "send to" copies by itself


def made(runner, component, elem_id):
    """What the host does after each component: scripts may put theirs beside it."""
    runner.after_component(component, elem_id=elem_id)
    return component


def generate(runner, tab):
    def run(prompt, negative, steps, scale, width, height, count, batch, seed, hires, image, mask, *own_args):
        with queue_lock:
            p = StableDiffusionProcessing(
                prompt, negative, steps, scale, width, height, count, batch, seed, enable_hr=bool(hires),
                init_images=[image] if image is not None else [], mask=mask,
                script_args=[None, *own_args], runner=runner,
            )  # fmt: skip
            shared.state.begin("task")
            try:
                processed = process_images(p)
            finally:
                shared.state.end()
        LAST.update(text=processed.info, image=processed.images[0])
        comments = "<br>".join(html.escape(line) for line in processed.comments.split("\n"))
        text = html.escape(processed.info).replace("\n", "<br>")
        return processed.images, f"<p>{text}</p>", f"<p class='comments'>{comments}</p>", processed.js()

    return run


def paste(fields, image=None):
    """An infotext (without one, that of the last picture) into the widgets; a picture into the tab's own.

    Observed: a target that can be called is asked with the parameters, whatever else it is.
    """

    def run(prompt, *pictures):
        text = prompt if "\nSteps:" in prompt else LAST["text"]
        found = infotext_utils.parse_generation_parameters(text)
        script_callbacks.call("infotext_pasted", text, found)
        updates = list(pictures)
        for component, target in fields:
            value = target(found) if callable(target) else found.get(target)
            if value is None:
                updates.append(gr.update())
                continue
            kind = type(component.value)
            updates.append(gr.update(value=value if kind is type(None) else kind(value)))
        return updates

    return run, [*([image] if image else []), *(component for component, _ in fields)]


def send_buttons(tabs):
    """Under the results of txt2img: the picture, and the widgets of one tab into those of another.

    Observed: only widgets whose label is among the host's own or in the scripts' `paste_field_names`, in the
    order of each tab's list; a label that is a function is among neither.
    """
    source, target = tabs["txt2img"]["fields"], tabs["img2img"]
    named = [*SENT, *scripts.scripts_txt2img.paste_field_names]
    for button in tabs["txt2img"]["buttons"]:
        button.click(lambda: LAST["image"], [], [target["image"]], queue=False)
        button.click(
            lambda *values: values[0] if len(values) == 1 else list(values),
            [component for component, label in source if label in named],
            [component for component, label in target["fields"] if label in named],
            queue=False,
        )


def png_info_page(tabs):
    """A picture's parameters, and buttons that send them on."""
    picture = gr.Image(type="pil", label="Source", elem_id="pnginfo_image")
    text = gr.Textbox(label="Parameters", elem_id="pnginfo_generation_info")
    picture.change(lambda image: (image.info if image else {}).get("parameters", ""), [picture], [text])
    for name, tab in tabs.items():
        button = gr.Button(f"Send to {name}", elem_id=f"{name}_tab")
        run, outputs = paste(tab["fields"], tab["image"])
        inputs = [text, picture] if tab["image"] else [text]
        button.click(run, inputs, outputs, queue=False)


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
                size = {"minimum": 64, "maximum": 2048, "value": paths.DEFAULT_SIZE, "step": 8}
                width = gr.Slider(**size, label="Width", elem_id=f"{tab}_width")
                height = gr.Slider(**size, label="Height", elem_id=f"{tab}_height")
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
            with gr.Row():
                places = ("img2img", "inpaint")  # the two hosts' buttons under a picture; one tab here
                buttons = [gr.Button(f"to {name}", elem_id=f"{tab}_send_to_{name}") for name in places]
            info = made(runner, gr.HTML(elem_id=f"html_info_{tab}"), f"html_info_{tab}")
            log = made(runner, gr.HTML(elem_id=f"html_log_{tab}"), f"html_log_{tab}")
            name = f"generation_info_{tab}"
            information = made(runner, gr.Textbox(visible=False, elem_id=name), name)
    nothing = gr.State(None)
    inputs = [prompt, negative, steps, scale, width, height, count, batch, seed, hires]
    inputs += [image or nothing, mask or nothing]
    submit.click(generate(runner, tab), [*inputs, *controls], [gallery, info, log, information])
    interrupt.click(shared.state.interrupt, [], [], queue=False)
    skip.click(shared.state.skip, [], [], queue=False)
    fields = [(prompt, "Prompt"), (negative, "Negative prompt"), (steps, "Steps"), (seed, "Seed")]
    fields += runner.infotext_fields
    run, outputs = paste(fields)
    arrow.click(run, [prompt], outputs, queue=False)
    return {"fields": fields, "image": image, "buttons": buttons}


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
    built = {}
    with gr.Blocks(title="stand-in", analytics_enabled=False) as demo, gr.Tabs(elem_id="tabs"):
        for tab, runner in (("txt2img", scripts.scripts_txt2img), ("img2img", scripts.scripts_img2img)):
            with gr.TabItem(tab, elem_id=f"tab_{tab}"):
                built[tab] = build_tab(tab, runner)
        with gr.TabItem("PNG Info", elem_id="tab_pnginfo"):
            png_info_page(built)
        send_buttons(built)
        for blocks, title, elem_id in tabs:
            with gr.TabItem(title, elem_id=f"tab_{elem_id}"):
                blocks.render()
        with gr.TabItem("Settings", elem_id="tab_settings"):
            settings_page()
    return demo
