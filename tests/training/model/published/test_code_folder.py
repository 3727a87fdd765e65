import ast

from training.model.published.code_folder import START, code_of, file_name, standing_alone


def test_the_code_of_a_folder_is_whole_and_needs_no_package_that_most_do_without() -> None:
    sources = {
        file_name(name): standing_alone(text, set()) for name, text in code_of(START).items()
    }
    for text in sources.values():
        tree = ast.parse(text)
        tried = {
            id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in sources
            elif isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in tried:
                first = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (first or "").split(".")[0] not in {
                    *("training", "schemas", "pyarrow", "timm", "sentencepiece", "deepspeed"),
                }
    assert "import timm\n" in standing_alone("import timm\n", {"timm"})
    assert "aligngpt_model.py" in sources and "aligngpt_processor.py" in sources
