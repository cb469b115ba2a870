"""Fair Adapter in AUTOMATIC1111 and Forge, and its studio without a host.

`host.py` and `script.py` alone import the host (`modules.*`), `ui.py`, `tab.py` and `studio.py` gradio; the
rest is plain Python, tested without either.
"""
