//! Machines that are not here: what was published comes out again.

use tangor_plan::simulate::{
    Machine, ProfileError, Step, markdown, residuals, seed_graph, seed_options, simulate,
};
use tangor_plan::{DeviceChoice, Kind, PlanOptions, Stage};

fn machine(name: &str) -> Machine {
    Machine::built_in(name).unwrap().unwrap()
}

#[test]
fn the_vendors_six_figures_come_out_within_three_percent() {
    let residuals = residuals(&machine("strix-point")).unwrap();
    assert_eq!(residuals.len(), 3);
    for residual in residuals {
        for error in [residual.ttft_error(), residual.decode_error()] {
            assert!(error.abs() < 0.03, "{residual:?}");
        }
    }
}
