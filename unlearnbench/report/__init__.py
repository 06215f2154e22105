"""Reports: tables, figures and a page, from records alone. Never imports torch or a plugin.

The same records give the same bytes.
"""
