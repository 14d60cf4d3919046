"""Turns chapters into pages: what they call, what runs them, what builds the book."""

from saddlebook.book.build import build as build
from saddlebook.book.build import check_pages as check_pages
from saddlebook.book.build import setup as setup
from saddlebook.book.notebooks import execute as execute
from saddlebook.book.notebooks import execute_all as execute_all
from saddlebook.book.notebooks import export as export
from saddlebook.book.notebooks import export_all as export_all
from saddlebook.book.page import Page as Page
