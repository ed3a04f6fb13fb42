"""Every module of emppl has a test file of the same place and name, or stands here with the file that exercises it."""

import pathlib

import emppl

TESTS = pathlib.Path(__file__).parents[1]
MODULES = {
    path.relative_to(pathlib.Path(emppl.__file__).parent).with_suffix("").as_posix()
    for path in pathlib.Path(emppl.__file__).parent.rglob("*.py")
    if path.stem != "__init__"
}
# By test file, modules that it exercises together; "" for those that hold declarations only.
THROUGH = {
    "": "names types model/options strategies/base",
    "checkpoint/test_file": "fit/acceleration",
    "contracts/test_families": """
        families/bounded families/check families/counts families/discrete families/family families/gaussian
        families/locations families/multivariate families/positive families/registry families/updates
    """,
    "contracts/test_rules": "mstep/entries mstep/given mstep/maximisation mstep/policy mstep/rule",
    "contracts/test_toy_way": "integrals/way",
    "elimination/chain/test_evidence": """
        elimination/chain/associative elimination/chain/blocked elimination/chain/choose
        elimination/chain/logspace elimination/chain/paths elimination/chain/twin elimination/chain/problem
        elimination/chain/recursion elimination/chain/scaled elimination/chain/tiles
    """,
    "elimination/test_chains": "estep/filtering trace/scan trace/scan_first trace/scan_later",
    "elimination/test_run": "elimination/order elimination/reductions estep/memory estep/posterior model/parts",
    "estep/test_fused": "estep/expectations estep/plain estep/q model/natural model/site model/log_prob_table",
    "integrals/test_exact": """
        integrals/joint integrals/integrated numerics/small_matrices
        strategies/exact
    """,
    "integrals/test_mcmc": "integrals/hamiltonian estep/simulated montecarlo/simulator strategies/sampling",
    "integrals/test_quadrature": """
        integrals/importance integrals/laplace integrals/modes integrals/sampling integrals/settle
        result/integration_error strategies/quadrature uncertainty/corners
    """,
    "integrals/test_smoother": "model/scans model/state_space",
    "integrals/test_truncated": "integrals/limits jaxpr/monotone",
    "jaxpr/test_primitives": """
        jaxpr/equations jaxpr/groups jaxpr/jumps jaxpr/numbering jaxpr/places jaxpr/separation jaxpr/walk
    """,
    "jaxpr/test_selection": "jaxpr/prune",
    "montecarlo/test_closing": "montecarlo/derivatives montecarlo/looks montecarlo/nearby montecarlo/trail",
    "montecarlo/test_simulation": """
        estep/informed fit/progress montecarlo/approximation montecarlo/ascent montecarlo/averaging
        montecarlo/path montecarlo/phases
    """,
    "mstep/test_closed_form": "mstep/readings",
    "mstep/test_quadratic": "model/regression mstep/analysis mstep/linear_predictors",
    "reduce/test_rows": "reduce/moments reduce/reduction reduce/same_model reduce/steps trace/weighted_rows",
    "result/test_compare": "result/labels",
    "result/test_components": "jaxpr/axes jaxpr/depends memo",
    "result/test_saddle": "uncertainty/second_order",
    "strategies/test_discrete": "model/compatible",
    "test_docs": "families/table",
    "trace/test_as_written": "model/states",
    "test_em": """
        compiled/bound compiled/functions derivation/derive derivation/plan fit/loop fit/outcome program
        result/accuracy result/certificate result/ending result/fitted result/latents
        result/summary
    """,
    "test_errors": "fit/checks",
    "trace/test_semantics": """
        estep/cell_weights model/axes trace/discover trace/evaluate trace/record
        trace/site_messages
    """,
}


def test_every_module_has_a_test_file_or_a_reason():
    listed = [module for modules in THROUGH.values() for module in modules.split()]
    assert len(listed) == len(set(listed)) and set(listed) <= MODULES, set(listed) - MODULES
    assert all((TESTS / f"{file}.py").exists() for file in THROUGH if file)
    own = {module for module in MODULES if (TESTS / module).with_name(f"test_{pathlib.Path(module).name}.py").exists()}
    assert own & set(listed) == set(), "these have files of their own by now"
    assert MODULES - own == set(listed), MODULES - own - set(listed)
