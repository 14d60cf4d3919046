"""Turns chapters into pages: what they call, what runs them, what builds the book."""

from saddlebook.book.notebooks import execute as execute
from saddlebook.book.notebooks import execute_all as execute_all
from saddlebook.book.notebooks import export as export
from saddlebook.book.notebooks import export_all as export_all
from saddlebook.book.page import Page as Page
from saddlebook.book.reproduce import build as build
from saddlebook.book.reproduce import check_pages as check_pages
from saddlebook.book.sheets import setup as setup
