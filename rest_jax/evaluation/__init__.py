"""One evaluation for all that is measured on images: what is left to do, records, reports."""
