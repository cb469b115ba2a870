import gradio as gr


def _enter(box):
    box.accordion.__enter__()
    return box


def _exit(box, *args):
    box.accordion.__exit__(*args)


# No class of its own: gradio 4 draws nothing for a component that it does not know.
gr.Checkbox.__enter__, gr.Checkbox.__exit__ = _enter, _exit


def InputAccordion(value=False, label="", elem_id=None, **options):
    """A check box that is an accordion: open is on."""
    box = gr.Checkbox(value, label=f"Enable {label}", elem_id=f"{elem_id}-checkbox")
    box.accordion = gr.Accordion(label=label, open=value, elem_id=elem_id)
    box.change(lambda on: gr.update(open=on), [box], [box.accordion], queue=False, show_progress="hidden")
    return box


FormRow = gr.Row
ToolButton = gr.Button
